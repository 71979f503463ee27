"""Matrices decoded by the GPU kernels are those that the CPU decodes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nwc.codec.compressed import CompressedTensor
from nwc.codec.config import DEFAULT, IDENTITY, LIGHT, CodecConfig
from nwc.codec.gpu import DeviceMatrices, decode
from nwc.codec.gpu_product import DeviceProduct
from nwc.codec.model import WeightCodec
from nwc.coding.bitstream import encode
from nwc.coding.container import Section
from nwc.coding.tables import FrequencyTable, TableBank
from nwc.coding.tiling import Profile
from nwc.errors import BitstreamError, ConfigError
from nwc.kernels.gpu import BadTileError
from nwc.methods.base import LayerWeight
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural

RESIDUAL = CodecConfig(kind="residual", width=32, blocks=2, lam=100.0, nominal_log2_gain=2.0)
SKIP = dataclasses.replace(DEFAULT, kind="skip")
SMALL = Profile(rows=32, weights=256)


def trained_looking(config):
    """A codec whose transforms do something; the numbers are random."""
    torch.manual_seed(0)
    codec = WeightCodec(config)
    for name, parameter in codec.named_parameters():
        if name.endswith("reduce.weight") and config.kind != "residual":
            torch.nn.init.normal_(parameter, std=0.02)
    return codec


def make(config, shape=(43, 12), transposed=False, seed=0, outlier=None):
    """A compressed matrix with classes of rows, ragged edges and, if asked for, patches."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(shape, generator=generator)
    if outlier:
        W[outlier] = 500.0
    codec, bank = trained_looking(config), TableBank()
    method = Ecsq(SMALL) if config.kind == "identity" else Neural(codec, SMALL)
    rows = torch.linspace(0.1, 20, shape[0]) if config.elementwise else None
    layer = LayerWeight(name="W", W=W, transposed=transposed, row_weights=rows)
    X = torch.randn(100, shape[1], generator=generator) * torch.linspace(0.1, 4, shape[1])
    gain = 6.0 if outlier and config.elementwise else 2.0
    data = method.compress([layer], X.T @ X / 100, gain, bank)[0].data
    return CompressedTensor(data, codec, bank)


def same(found, tensor):
    """Whether FP32 weights are those of the CPU, to the tolerance of the specification."""
    expected = tensor.weight()
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    # Values come from another call of the same functions, which may round the last bit otherwise.
    exact = tensor.codec.config.elementwise
    bound = 0 if exact else 1e-3 * float(tensor.scales.max())
    return torch.allclose(found.cpu(), expected, rtol=1e-5 if exact else 0, atol=bound)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("config", [IDENTITY, LIGHT, DEFAULT, RESIDUAL, SKIP])
def test_weights_are_those_of_the_cpu(config, stored, transposed, device):
    tensor = make(config, transposed=transposed, outlier=(40, 3))
    assert len(tensor.stream.tiles) > 1
    assert len(tensor.stream.patches[0]) or not config.elementwise
    (found,) = DeviceMatrices([tensor], device, stored=stored).weights(torch.float32)
    assert same(found, tensor)
    if config.elementwise and stored:
        assert found.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype, device):
    tensor = make(DEFAULT)
    (found,) = DeviceMatrices([tensor], device).weights(dtype)
    expected = tensor.weight(dtype)
    assert found.dtype == dtype
    if device == "cpu" and dtype == torch.bfloat16:
        # The interpreter of Triton 3.7 cuts where a GPU rounds to even.
        cut = tensor.weight().view(torch.int32) >> 16 << 16
        expected = cut.view(torch.float32).bfloat16()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_matrices_of_many_shapes_decode_together(device):
    made = [
        make(DEFAULT, (1, 1)),
        make(LIGHT, (50, 3), transposed=True, seed=1),
        make(IDENTITY, (17, 20), seed=2, outlier=(16, 19)),
        make(DEFAULT, (32, 5), seed=3),
    ]
    matrices = DeviceMatrices(made, device)
    for found, tensor in zip(matrices.weights(torch.float32), made, strict=True):
        assert same(found, tensor)
    again = matrices.weights(torch.float32)
    for found, tensor in zip(again, made, strict=True):
        assert same(found, tensor)


def test_a_mixture_of_codecs_decodes_in_order(device):
    made = [make(DEFAULT), make(RESIDUAL, (20, 4)), make(LIGHT, (3, 7)), make(IDENTITY, (3, 5))]
    for found, tensor in zip(decode(made, device, torch.float32), made, strict=True):
        assert found.is_contiguous()
        assert same(found, tensor)
    with pytest.raises(ConfigError, match="of 2 sorts of codecs"):
        DeviceMatrices(made, device)


def test_large_batches_are_cut(device, monkeypatch):
    made = [make(LIGHT, (16, 4), seed=i) for i in range(5)]
    cuts = []

    class Seen(DeviceMatrices):
        def __init__(self, tensors, device):
            cuts.append(len(tensors))
            super().__init__(tensors, device)

    monkeypatch.setattr("nwc.codec.gpu.DeviceMatrices", Seen)
    monkeypatch.setattr("nwc.codec.gpu._BATCH_WEIGHTS", 2 * 16 * 4)
    for found, tensor in zip(decode(made, device, torch.float32), made, strict=True):
        assert same(found, tensor)
    assert cuts == [2, 2, 1]


@pytest.mark.parametrize("batch", [1, 3])
def test_products_are_those_of_the_weights(batch, device):
    made = [
        make(LIGHT, (43, 12), outlier=(40, 3)),
        make(IDENTITY, (50, 3), transposed=True, seed=1, outlier=(0, 0)),
        make(DEFAULT, (7, 9), seed=2),
    ]
    for tensor in made[:2]:
        assert len(tensor.stream.patches[0])
    columns = [tensor.stream.head.columns for tensor in made]
    x = torch.randn(batch, sum(columns), generator=torch.Generator().manual_seed(0)).to(device)
    product = DeviceProduct(DeviceMatrices(made, device))
    found = product(x)
    product.check()
    for y, part, tensor in zip(found, x.cpu().split(columns, dim=1), made, strict=True):
        W = tensor.weight().double()
        W = W.T if tensor.stream.head.transposed else W
        expected = part.double() @ W.T
        bound = 1e-5 * (part.abs().double() @ W.T.abs())
        assert bool(((y.cpu().double() - expected).abs() <= bound).all())
    for y, once_more in zip(found, product(x), strict=True):
        assert torch.equal(y, once_more)


def test_products_refuse_other_shapes_and_codecs(device):
    tensor = make(LIGHT, (20, 4))
    with pytest.raises(ConfigError, match=r"vectors are \[1, 5\], wanted \[batch, 4\]"):
        DeviceProduct(DeviceMatrices([tensor], device))(torch.zeros(1, 5, device=device))
    with pytest.raises(ConfigError, match="cannot be multiplied"):
        DeviceProduct(DeviceMatrices([make(RESIDUAL, (20, 4))], device))


def damaged(tensor, at):
    data = bytearray(tensor.stream.container.view)
    data[at] ^= 1
    return CompressedTensor(bytes(data), tensor.codec, TableBank())


def test_damage_is_found_before_anything_is_decoded(device):
    with pytest.raises(BitstreamError, match="checksum of the tensor"):
        DeviceMatrices([damaged(make(IDENTITY), -12)], device)


def test_without_checksums_damage_is_found_while_decoding(device):
    sound, broken = make(IDENTITY), damaged(make(IDENTITY), -12)
    matrices = DeviceMatrices([sound, broken], device, check=False)
    with pytest.raises(BadTileError, match="a lane does not end at 65536") as caught:
        matrices.weights(torch.float32)
    last = len(broken.stream.tiles) - 1
    assert (caught.value.matrix, caught.value.tile) == (1, last)


def test_decode_says_which_tensor_is_damaged(device, monkeypatch):
    monkeypatch.setattr("nwc.codec.gpu._check", lambda tensor: None)
    made = [make(RESIDUAL, (20, 4)), make(IDENTITY), damaged(make(IDENTITY), -12)]
    with pytest.raises(BadTileError) as caught:
        list(decode(made, device, torch.float32))
    assert caught.value.matrix == 2


@settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6), st.booleans())
def test_any_stream_decodes_as_on_the_cpu(device, seed, m, n, transposed):
    # Lanes with tables of their own, patches anywhere, also in padding, values of any size.
    rng = np.random.default_rng(seed)
    chunks = -(-m // 16)
    tables = [
        FrequencyTable(int(rng.integers(-300, 300)), np.diff([0, *cuts, 4096]))
        for cuts in (np.sort(rng.choice(np.arange(1, 4096), 30, replace=False)) for _ in range(3))
    ]
    classes = rng.integers(0, 2, n).astype(np.uint8), rng.integers(0, 2, (chunks, 16))
    data = encode(
        rng.integers(-400, 400, (n, chunks, 16)).astype(np.int16),
        type(make(IDENTITY, (1, 1)).stream.classes)(classes[0], classes[1].astype(np.uint8)),
        [[tables[i] for i in rng.integers(0, 3, 16)] for _ in range(3)],
        rows=m,
        profile=Profile(16, 64),
        extra={
            Section.GAIN: np.float32(rng.uniform(0, 4)).tobytes(),
            Section.SCALE: np.float32(rng.uniform(0.5, 2)).tobytes(),
        },
        transposed=transposed,
    )
    config = dataclasses.replace(LIGHT, importance=(1.0, 2.0, 4.0))
    tensor = CompressedTensor(data, WeightCodec(config))
    for stored in (False, True):
        (found,) = DeviceMatrices([tensor], device, stored=stored).weights(torch.float32)
        assert same(found, tensor)
