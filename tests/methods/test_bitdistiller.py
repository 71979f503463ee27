import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.errors import CalibrationError
from nwc.evaluation.perplexity import evaluate
from nwc.methods.base import LayerWeight
from nwc.methods.bitdistiller import (
    BitDistiller,
    clipped,
    confidence,
    normal_float,
    round_groups,
)
from nwc.methods.dense import Matrix
from nwc.methods.qat import Schedule
from nwc.methods.rtn import round_in_groups
from nwc.numerics.ldlq import proxy_loss

# As the paper's code prints them.
NF3 = [-1, -0.5350227356, -0.2469314039, 0, 0.1833375245, 0.3819939494, 0.6229856610, 1]
# Dettmers et al., 2023, App. E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def whole(parameter):
    return parameter


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


@pytest.mark.parametrize(("bits", "printed"), [(3, NF3), (4, NF4)])
def test_published_values(bits, printed):
    torch.testing.assert_close(normal_float(bits), torch.tensor(printed), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 4])
def test_rounding_by_brute_force(bits):
    W = torch.randn(7, 200, generator=torch.Generator().manual_seed(0))
    W[1] = W[1].abs()
    W[2] = 0
    found = round_groups(W, bits)
    for part, rounded in zip(W.split(128, 1), found.split(128, 1), strict=True):
        for row, values in zip(part, rounded, strict=True):
            high, low = (x.clamp_min(0).half().float() for x in (row.max(), -row.min()))
            scale = torch.where(row >= 0, high, low)
            grid = normal_float(bits) * scale[:, None]
            best = (grid - row[:, None]).abs().amin(1)
            torch.testing.assert_close((values - row).abs(), best)


def test_two_bits_are_uniform():
    W, _ = problem(8, 300)
    assert torch.equal(round_groups(W, 2), round_in_groups(W, 2))


@pytest.mark.parametrize("bits", [2, 3])
def test_clipping_is_the_best_of_all_limits(bits):
    W, H = problem(4, 6)
    found = clipped(W, bits, H)
    for row, limits in zip(W, found, strict=True):
        losses = []
        for up, down in itertools.product(range(10), range(10)):
            high, low = row.max() * (1 - up / 20), row.min() * (1 - down / 20)
            losses.append(proxy_loss(row - round_groups(row.clamp(low, high)[None], bits), H))
        loss = proxy_loss(row - round_groups(limits[None], bits), H)
        assert loss == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3])
def test_clipping_is_better_than_rounding(bits):
    W, H = problem(32, 300)
    before, after = (W - round_groups(V, bits) for V in (W, clipped(W, bits, H)))
    assert proxy_loss(after, H) < 0.9 * proxy_loss(before, H)
    blind = W - round_groups(clipped(W, bits, None), bits)
    assert blind.norm() < 0.9 * before.norm()


@pytest.mark.parametrize(("bits", "extra"), [(2, 18 / 128), (3, 32 / 128), (4, 32 / 128)])
def test_bits(bits, extra):
    method = BitDistiller(bits)
    found = method.quantise([LayerWeight(name="a", W=torch.randn(8, 256))], None)[0]
    assert 8 * found.budget.total / (8 * 256) == bits + extra == method.nominal_bits


def test_needs_text():
    with pytest.raises(CalibrationError, match="learns from text"):
        BitDistiller(3).prepare(torch.nn.Linear(2, 2), None)


def test_confidence_by_hand(llama):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    text = torch.randint(256, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = model(input_ids=text).logits.softmax(-1)
    wanted = [float(p[i, j, text[i, j + 1]]) for i in range(3) for j in range(7)]
    assert confidence(model, text) == pytest.approx(sum(wanted) / 21, rel=1e-4)


class Short(BitDistiller):
    schedule = Schedule(steps=32, batch_tokens=256, learning_rate=0.01)
    context = 32


def test_better_than_rounding_alone(llama):
    model, plain, original = (
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval() for _ in range(3)
    )
    names = [n for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    for name in names:
        W = plain.get_parameter(name).data
        W.copy_(round_groups(W, 2))
    method = Short(2)
    method.matrices = [Matrix(n, n, n, whole) for n in names]
    generator = torch.Generator().manual_seed(0)
    prepared = method.prepare(model, torch.randint(256, (8, 64), generator=generator))
    for name in names:
        layer = LayerWeight(name=name, W=prepared.parameters[name])
        found = method.quantise([layer], None)[0].weight
        assert torch.equal(found, model.get_parameter(name))
    text = torch.randint(256, (16, 64), generator=generator)
    before, after = (evaluate(m, text, original).kl_divergence for m in (plain, model))
    assert after < 0.7 * before
