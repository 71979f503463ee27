"""Checkpoints whose tensors go to a GPU are decoded there; elsewhere by Triton's interpreter."""

import pytest
import torch

from nwc.codec.compressed import CompressedTensor
from nwc.errors import BitstreamError
from nwc.formats.checkpoint import Checkpoint
from nwc.kernels import gpu

KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def on_device(device, monkeypatch):
    """The device, which counts as a GPU whatever it is."""
    monkeypatch.setattr(gpu, "available", lambda device: True)
    return device


def test_no_gpu_without_cuda(monkeypatch):
    assert not gpu.available("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not gpu.available("cuda")


def test_all_tensors_are_those_of_the_cpu(made, on_device, monkeypatch):
    checkpoint = Checkpoint(made)
    # The interpreter is slow: two of the matrices, and everything that is kept.
    left = {KEY, KEY.replace("k_proj", "v_proj"), *checkpoint.kept_keys()}
    stored = {key: at for key, at in checkpoint._stored.items() if key in left}
    monkeypatch.setattr(checkpoint, "_stored", stored)
    found = checkpoint.state_dict(torch.float32, on_device)
    one = checkpoint.tensor(KEY, torch.float32, on_device)
    monkeypatch.setattr(gpu, "available", lambda device: False)
    expected = checkpoint.state_dict(torch.float32)
    assert list(found) == list(expected)
    assert len(found) == len(left)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key].cpu(), weight, rtol=1e-5, atol=1e-7)
    assert torch.equal(one, found[KEY])


def test_a_tensor_of_three_dimensions(made, on_device, monkeypatch):
    checkpoint = Checkpoint(made)
    names = checkpoint.compressed_keys()
    state = {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}
    monkeypatch.setattr("nwc.formats.checkpoint.decode", lambda *_: list(state.values()))
    monkeypatch.setattr(checkpoint, "_stacked", {"experts": names[:3], "others": names[3:]})
    found = checkpoint.state_dict(torch.float32, on_device)
    assert torch.equal(found["experts"], torch.stack([state[name] for name in names[:3]]))
    assert set(found) == {"experts", "others", *checkpoint.kept_keys()}


def test_the_damaged_tensor_is_named(made, on_device, monkeypatch):
    checkpoint = Checkpoint(made)
    whole = checkpoint.compressed(KEY)
    data = bytearray(whole.stream.container.view)
    data[-12] ^= 1
    broken = CompressedTensor(bytes(data), whole.codec, checkpoint._bank)
    plain = checkpoint.compressed
    monkeypatch.setattr(checkpoint, "compressed", lambda k: broken if k == KEY else plain(k))
    with pytest.raises(BitstreamError, match=f"{KEY}: checksum of the tensor does not match"):
        checkpoint.state_dict(torch.float32, on_device)
