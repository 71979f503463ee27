import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.evaluation.perplexity import evaluate, strided


@pytest.fixture(scope="module")
def models(llama):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    other = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    return model, other


TOKENS = torch.randint(256, (7, 12), generator=torch.Generator().manual_seed(0))


def test_equals_a_plain_loop(models):
    model, other = models
    nll, kl, agree, count = 0.0, 0.0, 0, 0
    with torch.no_grad():
        for window in TOKENS:
            p = model(window[None]).logits[0].double().log_softmax(-1)
            q = other(window[None]).logits[0].double().log_softmax(-1)
            for i in range(len(window) - 1):
                nll -= q[i, window[i + 1]].item()
                kl += (p[i].exp() * (p[i] - q[i])).sum().item()
                agree += int(p[i].argmax() == q[i].argmax())
                count += 1
    for batch_tokens in (1, 24, 1000):
        seen = []
        found = evaluate(other, TOKENS, model, batch_tokens=batch_tokens, on_batch=seen.append)
        assert found.tokens == count == 77
        assert found.perplexity == pytest.approx(math.exp(nll / count), rel=1e-4)
        assert found.kl_divergence == pytest.approx(kl / count, rel=1e-3)
        assert found.top1_agreement == pytest.approx(agree / count)
        assert sum(seen) == 7


def test_a_model_does_not_stray_from_itself(models):
    found = evaluate(models[0], TOKENS, models[0])
    assert found.kl_divergence == 0
    assert found.top1_agreement == 1
    assert found.perplexity == found.reference_perplexity


def test_without_a_reference(models):
    found = evaluate(models[0], TOKENS)
    assert found.reference_perplexity is found.kl_divergence is found.top1_agreement is None


class Bigram(torch.nn.Module):
    """Logits that depend on the whole prefix, through its mean."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(11, 11, generator=generator))

    def forward(self, input_ids, use_cache=False):
        steps = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        logits = self.table[input_ids].cumsum(dim=1) / steps
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_strided_windows_score_every_token_once(stride):
    model, reference = Bigram(), Bigram()
    with torch.no_grad():
        reference.table += 0.1
    tokens = torch.randint(11, (4, 16), generator=torch.Generator().manual_seed(1))
    windows, scored = strided(tokens, stride)
    found = evaluate(model, windows, reference, scored=scored, batch_tokens=40)
    ids, loss, count, done = tokens.flatten(), 0.0, 0, 1
    for begin in range(0, 64 - 16 + 1, stride):  # the plain loop of the usual protocol
        logits = model(ids[None, begin : begin + 16]).logits[0].log_softmax(-1)
        for position in range(max(done, begin + 1), begin + 16):
            loss -= float(logits[position - begin - 1, ids[position]].detach())
            count += 1
        done = begin + 16
    assert found.tokens == count
    assert found.perplexity == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert found.kl_divergence >= 0
