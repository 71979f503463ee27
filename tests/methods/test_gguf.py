"""K-quants read by package gguf, and its own types; skipped where it is not installed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nwc.errors import ConfigError
from nwc.methods.base import LayerWeight
from nwc.methods.gguf_k import GGUFK, quantise, to_super_blocks
from nwc.methods.gguf_layout import TYPES, pack
from nwc.methods.gguf_legacy import GGUFLegacy
from nwc.methods.rtn import round_in_groups

every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


def matrix(m, n, seed=1):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def packed(blocks, kind):
    return pack(kind, **{k: v.numpy() for k, v in blocks._asdict().items()})


def read_by_gguf(data, kind):
    gguf = pytest.importorskip("gguf", reason="package gguf is not installed")
    return torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.name]))


@every_type
def test_gguf_reads_what_we_restore(kind):
    x = matrix(50, 256) * torch.logspace(-3, 1, 50)[:, None]
    x[3, :64] = 0
    blocks = quantise(x, kind)
    torch.testing.assert_close(read_by_gguf(packed(blocks, kind), kind), blocks.restore(kind))


@every_type
@given(seed=st.integers(0, 2**32 - 1))
def test_gguf_reads_any_block(kind, seed):
    # Not only those that a search would find: every bit has its place.
    rng = np.random.default_rng(seed)
    subs = 256 // kind.size
    largest = 2**kind.scale_bits
    shift = largest // 2 if kind.middle else 0
    fields = {
        "codes": rng.integers(0, 2**kind.bits, (3, subs, kind.size)).astype(np.int16),
        "scales": (rng.integers(0, largest, (3, subs)) - shift).astype(np.int16),
        "minima": rng.integers(0, largest, (3, subs)).astype(np.int16),
        "d": rng.standard_normal(3).astype(np.float16),
        "d_min": rng.standard_normal(3).astype(np.float16),
    }
    if kind.middle:
        fields["minima"][:] = 0
    expected = np.float32(fields["d"])[:, None, None] * fields["scales"][..., None] * (
        fields["codes"] - kind.middle
    ) - np.float32(fields["d_min"])[:, None, None] * fields["minima"][..., None].astype(np.float32)
    found = read_by_gguf(pack(kind, **fields), kind)
    np.testing.assert_allclose(found, expected.reshape(3, 256), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("bits", "exactly"), [(2.6, 2.625), (3.4, 3.4375), (4, 4.5), (5.4, 5.5), (6.5, 6.5625)]
)
def test_bits(bits, exactly):
    W = matrix(64, 256)
    found = GGUFK(bits).quantise([LayerWeight(name="a", W=W)], None)[0]
    assert 8 * found.budget.total / W.numel() == exactly
    assert GGUFK(bits).nominal_bits == exactly


@every_type
def test_a_block_on_the_grid_is_kept(kind):
    # Codes from end to end in every sub-block: the search must find the scales again.
    codes = torch.arange(256).view(-1, kind.size) % 2**kind.bits
    codes[:, 0], codes[:, 1] = 0, 2**kind.bits - 1
    x = (codes - kind.middle).float().view(1, 256) * 0.5
    if not kind.middle:
        x -= 0.5 * (2**kind.bits // 4)
    found = quantise(x, kind).restore(kind)
    torch.testing.assert_close(found, x, rtol=0.01, atol=0.01)


def test_scales_by_brute_force():
    # A sub-block of Q4_K alone: no pair of scale and minimum on a fine grid is much better.
    kind = TYPES[2]
    x = torch.zeros(1, 256)
    x[0, :32] = matrix(1, 32)
    part = x[0, :32]
    weights = part.abs() + part.square().mean().sqrt()
    e = part - quantise(x, kind).restore(kind)[0, :32]
    losses = []
    span = float(part.max() - part.min())
    for width, low in itertools.product(np.linspace(0.7, 1.2, 60), np.linspace(0.7, 1.2, 60)):
        scale, shift = width * span / 15, low * float(part.min())
        q = ((part - shift) / scale).round().clamp(0, 15)
        losses.append(float((weights * (part - shift - q * scale).square()).sum()))
    assert float((weights * e.square()).sum()) < 1.3 * min(losses)


@pytest.mark.parametrize("bits", [2.625, 3.4375, 4.5, 5.5, 6.5625])
def test_better_than_rounding_at_as_many_bits(bits):
    # Rounding with codes of as many bits as would fit, in groups of 128.
    W = matrix(64, 512)
    ours = GGUFK(bits).quantise([LayerWeight(name="a", W=W)], None)[0].weight
    assert (W - ours).norm() < (W - round_in_groups(W, int(bits))).norm()


def test_importance_moves_the_error():
    W = matrix(64, 256)
    H = torch.eye(256)
    H[:128] *= 100
    layers = [LayerWeight(name="a", W=W)]
    plain, aware = (GGUFK(4.5).quantise(layers, h)[0].weight for h in (None, H))
    loss = [float(((W - found).square() * H.diagonal()).sum()) for found in (plain, aware)]
    assert loss[1] < loss[0]


@every_type
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (7, 288)])
def test_odd_sizes_are_padded_and_counted(kind, shape):
    W = matrix(*shape)
    method = GGUFK(8 * kind.bytes / 256)
    found = method.quantise([LayerWeight(name="a", W=W)], torch.zeros(shape[1], shape[1]))[0]
    assert found.weight.shape == W.shape
    assert found.budget.total == kind.bytes * -(-W.numel() // 256)
    assert torch.isfinite(found.weight).all()


def test_super_blocks_run_across_rows():
    blocks = to_super_blocks(torch.arange(300.0).view(3, 100))
    assert blocks.shape == (2, 256)
    assert blocks[1, 44:].eq(0).all()
    assert blocks[1, 43] == 299


def test_zeros_stay_zeros():
    for kind in TYPES:
        assert quantise(torch.zeros(2, 256), kind).restore(kind).eq(0).all()


@pytest.mark.parametrize("bits", GGUFLegacy.settings)
def test_legacy_types_are_those_of_the_package(bits):
    gguf = pytest.importorskip("gguf", reason="package gguf is not installed")
    method = GGUFLegacy(bits)
    W = matrix(6, 64)
    found = method.quantise([LayerWeight(name="a", W=W)], None)[0]
    kind = gguf.GGMLQuantizationType[method.setting.label]
    expected = gguf.quants.dequantize(gguf.quants.quantize(W.numpy(), kind), kind)
    assert np.array_equal(found.weight.numpy(), expected)
    assert 8 * found.budget.total / W.numel() == bits
    odd = matrix(3, 45)
    found = method.quantise([LayerWeight(name="a", W=odd)], None)[0]
    assert (odd - found.weight).norm() < 0.2 * odd.norm()
    assert 8 * found.budget.total == bits * 160


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("nwc.methods.gguf_legacy.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package gguf, which is not installed"):
        GGUFLegacy(4.5)
