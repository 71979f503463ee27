import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.errors import CalibrationError
from nwc.methods.dense import Matrix
from nwc.methods.whole_model import hessians, pieces, weights


def identity(x):
    return x


def matrix(path, view=identity):
    return Matrix(path, path, path, view)


def windows():
    return torch.randint(256, (5, 64), generator=torch.Generator().manual_seed(0))


def test_hessians_are_of_the_inputs(llama):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    mlp = "model.layers.1.mlp"
    paths = [f"{mlp}.{x}_proj.weight" for x in ("gate", "up", "down")]
    found = hessians(model, [matrix(path) for path in paths], windows())
    assert found[paths[0]] is found[paths[1]]
    inputs = []
    block = model.get_submodule(mlp)
    with torch.no_grad(), block.register_forward_pre_hook(lambda _, x: inputs.append(x[0])):
        model(input_ids=windows())
    X = inputs[0].reshape(-1, 64)
    torch.testing.assert_close(found[paths[0]], X.T @ X / len(X), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        Y = block.act_fn(block.gate_proj(X)) * block.up_proj(X)
    torch.testing.assert_close(found[paths[2]], Y.T @ Y / len(Y), rtol=1e-3, atol=1e-4)
    assert not block.gate_proj._forward_pre_hooks


def test_transposed_matrices(gpt2):
    model = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32).eval()
    path = "transformer.h.0.mlp.c_proj.weight"
    transposed = matrix(path, torch.t)
    assert weights(model, [transposed])[path].shape == (64, 256)
    assert hessians(model, [transposed], windows())[path].shape == (256, 256)


def test_experts_have_none(experts):
    model = AutoModelForCausalLM.from_pretrained(experts, dtype=torch.float32).eval()
    name = next(n for n, p in model.named_parameters() if p.dim() == 3)
    assert hessians(model, [matrix(name)], windows()) == {}


def test_pieces():
    assert pieces(windows(), 1000).shape == (5, 64)
    assert pieces(windows(), 24).shape == (10, 24)
    with pytest.raises(CalibrationError, match="64 tokens make 1 window of 40"):
        pieces(windows()[:1], 40)
