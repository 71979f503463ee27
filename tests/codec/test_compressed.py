from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nwc.codec.compressed import CompressedTensor, MeasuredErrors
from nwc.codec.config import DEFAULT, IDENTITY, CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding import tiling
from nwc.coding.tables import TableBank
from nwc.coding.tiling import Profile
from nwc.errors import BitstreamError
from nwc.kernels import rans_numba
from nwc.methods.base import LayerWeight
from nwc.methods.transform_coding import TransformCoding

RESIDUAL = CodecConfig(kind="residual", width=32, blocks=2, lam=100.0, nominal_log2_gain=2.0)
SMALL = Profile(rows=64, weights=512)


def trained_looking(config):
    """A codec whose transforms do something; the numbers are random."""
    torch.manual_seed(0)
    codec = WeightCodec(config)
    for name, parameter in codec.named_parameters():
        if name.endswith("reduce.weight") and config.kind != "residual":
            torch.nn.init.normal_(parameter, std=0.02)
    return codec


def make(config, shape=(150, 40), transposed=False, profile=SMALL):
    """A compressed matrix with calibration, and what reads it."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=generator)
    X = torch.randn(500, shape[1], generator=generator) * torch.linspace(0.1, 4, shape[1])
    codec, bank = trained_looking(config), TableBank()
    method = TransformCoding(codec, "column_log", profile)
    layer = LayerWeight(name="W", W=W, transposed=transposed)
    data = method.compress([layer], X.T @ X / 500, 2.0, bank)[0].data
    return W, CompressedTensor(data, codec, bank)


@pytest.mark.parametrize("config", [IDENTITY, DEFAULT, RESIDUAL])
def test_every_way_of_decoding_gives_the_same_bits(config):
    _, tensor = make(config)
    whole = tensor.weight(decoder=tiling.decode_tile)
    assert len(tensor.stream.tiles) > 8
    assert torch.equal(tensor.weight(decoder=rans_numba.decode_tile), whole)
    with ThreadPoolExecutor(4) as executor:
        assert torch.equal(tensor.weight(executor=executor), whole)
    assembled = torch.full_like(whole, float("nan"))
    for i, tile in enumerate(tensor.stream.tiles):
        values = tensor.tile(i)
        rows = slice(16 * tile.chunk, 16 * tile.chunk + values.shape[1])
        assembled[rows, tile.column : tile.column + tile.columns] = values.T
    assert torch.equal(assembled, whole)


@pytest.mark.parametrize("config", [DEFAULT, RESIDUAL])
def test_threads_of_the_matrix_product_do_not_matter(config):
    _, tensor = make(config, shape=(4096, 24), profile=Profile(4096, 2**15))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = tensor.weight()
        torch.set_num_threads(2)
        assert torch.equal(tensor.weight(), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("config", [IDENTITY, DEFAULT])
def test_the_lookup_is_the_transform(config):
    _, tensor = make(config)
    symbols = torch.from_numpy(tensor.stream.symbols())
    levels = (
        torch.from_numpy(tensor.stream.classes.columns).long()[:, None].expand(symbols.shape[:2])
    )
    with torch.no_grad():
        chunks = tensor.codec.synthesis(symbols.float(), levels, tensor.log2_gain)
    direct = (chunks * tensor.scales[:, None, None]).flatten(1)[:, :150].T
    torch.testing.assert_close(tensor.weight(), direct, rtol=1e-6, atol=1e-7)


def test_transposed_matrices_come_back_as_they_were():
    W, straight = make(DEFAULT)
    _, turned = make(DEFAULT, transposed=True)
    assert turned.shape == (40, 150)
    assert torch.equal(turned.weight(), straight.weight().T)
    assert float((straight.weight() - W).norm() / W.norm()) < 0.3


def test_dtype_of_the_weight():
    _, tensor = make(DEFAULT)
    assert torch.equal(tensor.weight(torch.bfloat16), tensor.weight().bfloat16())


def test_errors_round_trip():
    _, tensor = make(DEFAULT)
    assert 0 < tensor.errors.relative < 1
    assert 0 < tensor.errors.hessian < tensor.errors.relative
    with pytest.raises(BitstreamError, match="wanted 12"):
        MeasuredErrors.from_bytes(b"123")


def test_a_codec_with_fewer_levels_is_refused():
    _, tensor = make(DEFAULT)
    assert tensor.stream.head.classes > 1
    with pytest.raises(BitstreamError, match="levels, its codec 1"):
        CompressedTensor(bytes(tensor.stream.container.view), WeightCodec(IDENTITY))


def test_damage_is_found():
    _, tensor = make(DEFAULT)
    data = bytearray(tensor.stream.container.view)
    data[-100] ^= 1
    damaged = CompressedTensor(bytes(data), tensor.codec)
    with pytest.raises(BitstreamError, match="checksum"):
        damaged.weight()
    with pytest.raises(BitstreamError, match="does not exist"):
        tensor.tile(10_000)
