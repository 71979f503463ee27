import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.methods.dense import Matrix
from nwc.methods.llm_qat import round_rows
from nwc.methods.qat import Schedule, forward_kl, reverse_kl, train_rounded

EMBEDDING = torch.randn(32, 8, generator=torch.Generator().manual_seed(5)).cumsum(1)


class Linear(torch.nn.Module):
    """Logits of a token: a matrix times its embedding, whose entries go together."""

    def __init__(self, W):
        super().__init__()
        self.embedding = torch.nn.Parameter(EMBEDDING.clone())
        self.weight = torch.nn.Parameter(W.clone())

    def forward(self, input_ids, use_cache):
        class Output:
            logits = self.embedding[input_ids] @ self.weight.T

        return Output()


def whole(parameter):
    return parameter


def trained(rounding, schedule, W=None):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(6, 8, generator=generator) if W is None else W
    teacher, model = Linear(W), Linear(W)
    windows = torch.randint(32, (16, 32), generator=generator)
    latent = train_rounded(
        model, teacher, [Matrix("w", "w", "weight", whole)], rounding, forward_kl, windows,
        schedule, seed=0,
    )  # fmt: skip
    return teacher, model, latent, windows


def test_one_step_is_the_gradient_at_the_rounded_weights():
    # Adam's first step is the sign of the gradient times the rate: here of a model whose weights
    # were all rounded to halves.
    def halves(W):
        return (2 * W).round() / 2

    W = torch.linspace(-1.3, 1.3, 48).view(6, 8).bfloat16().float()
    schedule = Schedule(steps=1, batch_tokens=10_000, learning_rate=0.25, checks=1)
    seen = []

    def rounding(V):
        seen.append(V.clone())
        return halves(V)

    teacher, _, _, windows = trained(rounding, schedule, W)
    generator = torch.Generator().manual_seed(0)
    batch = windows[torch.randperm(16, generator=generator)][2:]
    rounded = Linear(halves(W))
    logits = (m(batch, False).logits.log_softmax(-1) for m in (rounded, teacher))
    forward_kl(*logits).backward()
    moved = seen[2] - W
    step = 0.25 * W.square().mean().sqrt()
    torch.testing.assert_close(moved, -step * rounded.weight.grad.sign(), rtol=0.02, atol=0.01)


def test_training_helps():
    def rounding(W):
        return round_rows(W, 3)

    teacher, model, latent, windows = trained(rounding, Schedule(batch_tokens=128))
    untrained = Linear(rounding(teacher.weight.detach()))
    with torch.no_grad():
        wanted, before, after = (
            m(windows, False).logits.log_softmax(-1) for m in (teacher, untrained, model)
        )
    assert forward_kl(after, wanted) < 0.8 * forward_kl(before, wanted)
    # What a file restores of the latent weights is what was trained, bit by bit.
    assert torch.equal(rounding(latent["weight"]), model.weight)
    assert torch.equal(latent["weight"].bfloat16().float(), latent["weight"])
    assert torch.equal(model.embedding, EMBEDDING)


def test_what_does_harm_is_not_kept():
    W = torch.randn(6, 8, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    _, _, latent, _ = trained(lambda W: W, Schedule(steps=4, learning_rate=100.0), W)
    assert torch.equal(latent["weight"], W)


def test_divergences_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert float(forward_kl(q, p)) == pytest.approx(0.510826, rel=1e-4)
    assert float(reverse_kl(q, p)) == pytest.approx(0.368064, rel=1e-4)


def test_fused_experts_are_trained(experts):
    model = AutoModelForCausalLM.from_pretrained(experts, dtype=torch.float32).eval()
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.dim() == 3)
    before = parameter.detach().clone()
    matrices = [Matrix(f"{name}.{e}", "e", name, lambda p, e=e: p[e]) for e in range(4)]
    windows = torch.randint(256, (8, 16), generator=torch.Generator().manual_seed(0))
    schedule = Schedule(steps=16, batch_tokens=64, learning_rate=0.01, checks=16)
    latent = train_rounded(
        model, copy.deepcopy(model), matrices, lambda W: round_rows(W, 3), forward_kl, windows,
        schedule, seed=0,
    )[name]  # fmt: skip
    assert not torch.equal(latent, before)
    assert torch.equal(model.get_parameter(name)[1], round_rows(latent[1], 3))
