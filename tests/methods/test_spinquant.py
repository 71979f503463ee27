import tarfile
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen2Config

from nwc.errors import ConfigError
from nwc.methods.rtn import round_in_groups
from nwc.methods.spinquant import SpinQuant, first_rotations, fold_norms, learn, rotate

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def tiny(config=None):
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


def logits(model, parameters, tokens):
    return functional_call(model, parameters, (tokens,), tie_weights=False).logits


TOKENS = torch.arange(40)[None] * 7 % 50


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_rotated_it_is_the_same_model(family, tied):
    model = tiny(family(**SIZES, tie_word_embeddings=tied))
    with torch.no_grad():
        before = model(TOKENS).logits
        folded = fold_norms(model)
        torch.testing.assert_close(logits(model, folded, TOKENS), before, atol=1e-4, rtol=1e-4)
        found = rotate(model, folded, first_rotations(model, 3))
        torch.testing.assert_close(logits(model, found, TOKENS), before, atol=1e-4, rtol=1e-4)
    changed = found["model.layers.0.self_attn.v_proj.weight"]
    assert (changed - model.model.layers[0].self_attn.v_proj.weight).norm() > changed.norm()


def test_what_is_learned_stays_orthogonal_and_serves():
    model = tiny()
    windows = torch.randint(0, 50, (4, 40), generator=torch.Generator().manual_seed(1))
    rotations = first_rotations(model, 0)
    start = [rotations.R1.clone(), *(R.clone() for R in rotations.R2)]
    folded = fold_norms(model)
    losses = learn(model, folded, rotations, windows[:1], 2, steps=40)
    for R, first in zip([rotations.R1, *rotations.R2], start, strict=True):
        torch.testing.assert_close(R @ R.T, torch.eye(len(R)), atol=1e-5, rtol=0)
        assert (R - first).norm() > 0.01
        assert not R.requires_grad
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_real_model_stays_what_it_is(tmp_path):
    with tarfile.open(EXAMPLES / "books-llama.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / "books-llama"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = (EXAMPLES / "books-heldout.txt").read_text()[:1000]
    tokens = torch.tensor(tokenizer(text)["input_ids"])[None]
    with torch.no_grad():
        before = model(tokens).logits
        found = rotate(model, fold_norms(model), first_rotations(model, 0))
        after = logits(model, found, tokens)
    assert (after - before).norm() < 1e-5 * before.norm()


def test_gradients_pass_through_rounding():
    model = tiny()
    folded, rotations = fold_norms(model), first_rotations(model, 0)
    found = rotate(model, folded, rotations, lambda W: round_in_groups(W, 2))
    plain = rotate(model, folded, rotations)
    for name, W in plain.items():
        is_matrix = "proj" in name
        assert torch.equal(found[name], W) is not is_matrix
        if is_matrix:
            assert torch.equal(found[name], round_in_groups(W, 2))


def test_prepare_with_and_without_calibration():
    model, heard = tiny(LlamaConfig(**SIZES, tie_word_embeddings=True)), []
    with torch.no_grad():
        before = model(TOKENS).logits
    plain = SpinQuant(3).prepare(model, None)
    learned = SpinQuant(3).prepare(model, TOKENS, lambda share, note: heard.append((share, note)))
    for prepared in (plain, learned):
        assert prepared.config == {"tie_word_embeddings": False}
        with torch.no_grad():
            after = logits(model, prepared.parameters, TOKENS)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert heard[-1][0] == 1
    assert "loss" in heard[-1][1]
    again = SpinQuant(3, seed=1).prepare(model, None).parameters["lm_head.weight"]
    assert not torch.equal(again, plain.parameters["lm_head.weight"])


def test_other_models_are_refused():
    model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel has no model\.embed_tokens"):
        SpinQuant(4).prepare(model, None)


def test_a_part_that_llama_lacks_is_refused():
    model = tiny()
    model.model.layers[0].mlp.router = torch.nn.Linear(48, 4, bias=False)
    with pytest.raises(ConfigError, match=r"also has model\.layers\.0\.mlp\.router"):
        SpinQuant(4).prepare(model, None)


def test_the_right_names_with_another_meaning_are_refused():
    model = tiny()
    model.model.layers[0].input_layernorm.register_forward_hook(lambda m, i, out: out + 1)
    with pytest.raises(ConfigError, match="computes something else"):
        SpinQuant(4).prepare(model, None)
