import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.evaluation.perplexity import evaluate
from nwc.methods.base import LayerWeight
from nwc.methods.dense import Matrix
from nwc.methods.llm_qat import LLMQAT, round_rows, write
from nwc.methods.qat import Schedule


def whole(parameter):
    return parameter


@pytest.fixture
def model(llama):
    return AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()


def test_rows_by_brute_force():
    W = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    W[2] = 0
    last = 7
    scale = (W.abs().amax(1, keepdim=True) / last).half().float()
    grid = scale[..., None] * torch.arange(-last, last + 1)
    nearest = grid.expand(5, 9, 15).gather(2, (grid - W[..., None]).abs().argmin(2, keepdim=True))
    torch.testing.assert_close(round_rows(W, 4), nearest[..., 0])


def test_bits():
    found = LLMQAT(4).quantise([LayerWeight(name="a", W=torch.randn(8, 256))], None)[0]
    assert 8 * found.budget.total / (8 * 256) == 4 + 16 / 256
    assert LLMQAT(4).nominal_bits == 4 + 16 / 4096


def test_text_is_the_models_own(model):
    text = write(model, 6, 24, seed=1)
    assert text.shape == (6, 24)
    assert torch.equal(text, write(model, 6, 24, seed=1))
    assert not torch.equal(text, write(model, 6, 24, seed=2))
    with torch.no_grad():
        logits = model(input_ids=text).logits
    # Three tokens at least are there before the first is drawn: the second and third are greedy.
    assert torch.equal(text[:, 1:3], logits[:, :2].argmax(-1))
    assert not torch.equal(text[:, 6:], logits[:, 5:-1].argmax(-1))


def test_no_global_randomness(model):
    before = torch.random.get_rng_state()
    write(model, 2, 8, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


class Short(LLMQAT):
    schedule = Schedule(steps=32, batch_tokens=256, learning_rate=0.01)
    context = 32


def test_better_than_rounding_alone(model, llama):
    original = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    names = [n for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    for name in names:
        W = plain.get_parameter(name).data
        W.copy_(round_rows(W, 3))
    method = Short(3)
    method.matrices = [Matrix(n, n, n, whole) for n in names]
    prepared = method.prepare(model, None)
    assert set(prepared.parameters) == set(names)
    for name in names:
        layer = LayerWeight(name=name, W=prepared.parameters[name])
        found = method.quantise([layer], None)[0].weight
        assert torch.equal(found, model.get_parameter(name))
    text = write(original, 16, 32, seed=9)
    before, after = (evaluate(m, text, original).kl_divergence for m in (plain, model))
    assert after < 0.9 * before
