import dataclasses
from concurrent.futures import ThreadPoolExecutor

import crc32c
import pytest
import torch
import xxhash

from nwc.codec.compressed import CompressedTensor, MeasuredErrors
from nwc.codec.config import DEFAULT, IDENTITY, LIGHT, CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding import tiling
from nwc.coding.container import Section
from nwc.coding.tables import TableBank
from nwc.coding.tiling import Profile
from nwc.errors import BitstreamError
from nwc.kernels import native_library, rans_numba
from nwc.methods.base import LayerWeight
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural

RESIDUAL = CodecConfig(kind="residual", width=32, blocks=2, lam=100.0, nominal_log2_gain=2.0)
RESIDUAL16 = dataclasses.replace(RESIDUAL, importance=(1.0,) * 16)
SMALL = Profile(rows=64, weights=512)


def trained_looking(config):
    """A codec whose transforms do something; the numbers are random."""
    torch.manual_seed(0)
    codec = WeightCodec(config)
    for name, parameter in codec.named_parameters():
        if name.endswith("reduce.weight") and config.kind != "residual":
            torch.nn.init.normal_(parameter, std=0.02)
    return codec


def make(config, shape=(150, 40), transposed=False, profile=SMALL, bank=None, outliers=False):
    """A compressed matrix with calibration, and what reads it."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=generator)
    if outliers:
        W.view(-1)[::997] *= 100
    X = torch.randn(500, shape[1], generator=generator) * torch.linspace(0.1, 4, shape[1])
    codec, bank = trained_looking(config), TableBank() if bank is None else bank
    method = Ecsq(profile) if config.kind == "identity" else Neural(codec, profile)
    rows = torch.linspace(0.1, 20, shape[0]) if config.elementwise else None
    layer = LayerWeight(name="W", W=W, transposed=transposed, row_weights=rows)
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
        with torch.inference_mode():
            inferred = tensor.weight(decoder=rans_numba.decode_tile, executor=executor)
        assert torch.equal(inferred, whole)
    assembled = torch.full_like(whole, float("nan"))
    for i, tile in enumerate(tensor.stream.tiles):
        values = tensor.tile(i)
        rows = slice(16 * tile.chunk, 16 * tile.chunk + values.shape[1])
        assembled[rows, tile.column : tile.column + tile.columns] = values.T
    assert torch.equal(assembled, whole)


LEVELS = native_library.levels() if native_library.available() else ()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("config", [IDENTITY, DEFAULT, LIGHT])
def test_decoding_and_synthesis_in_c_give_the_same_bits(
    monkeypatch, config, transposed, dtype, level
):
    _, tensor = make(config, transposed=transposed, outliers=True)
    assert len(tensor.stream.patches[0]) > 0
    plain = tensor.weight(dtype, decoder=rans_numba.decode_tile)
    monkeypatch.setenv("NWC_BACKEND", "native")
    monkeypatch.setenv("NWC_NATIVE_LEVEL", level)
    assert tensor.decoding(dtype).parts < len(tensor.stream.tiles)
    assert torch.equal(tensor.weight(dtype), plain)
    with ThreadPoolExecutor(3) as executor:
        assert torch.equal(tensor.weight(dtype, executor=executor), plain)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_tile_is_named(monkeypatch, level, threads):
    bank = TableBank()
    _, tensor = make(DEFAULT, bank=bank)
    monkeypatch.setenv("NWC_BACKEND", "native")
    monkeypatch.setenv("NWC_NATIVE_LEVEL", level)
    for i in (0, 7, len(tensor.stream.tiles) - 1):
        for hidden, message in ((False, "checksum of its"), (True, "tile ends|lane|a lane")):
            data = with_damaged_tile(tensor.stream.container, tensor.stream.tiles[i], i, hidden)
            damaged = CompressedTensor(data, tensor.codec, bank)
            wanted = pytest.raises(BitstreamError, match=f"tile {i}: ({message})")
            with ThreadPoolExecutor(threads) as executor, wanted as native:
                damaged.weight(executor=executor)
            with pytest.raises(BitstreamError) as tile_alone:
                damaged.tile(i)
            assert str(native.value) == str(tile_alone.value)


def with_damaged_tile(container, tile, number, hidden):
    """A stream whose own hash holds; `hidden`: the checksum of the tile, too."""
    data = bytearray(container.view)
    payload = len(data) - 8 - 2 * container.head.words
    start, stop = payload + 2 * tile.word, payload + 2 * (tile.word + tile.words)
    data[(start + stop) // 2] ^= 1
    if hidden:
        place = bytes(data).index(bytes(container.section(Section.INDEX))) + 72 * number + 4
        data[place : place + 4] = crc32c.crc32c(data[start:stop]).to_bytes(4, "little")
        data[payload - 4 : payload] = crc32c.crc32c(data[: payload - 4]).to_bytes(4, "little")
    data[-8:] = xxhash.xxh3_64_intdigest(bytes(data[:-8])).to_bytes(8, "little")
    return bytes(data)


def test_bands_cover_every_tile_once():
    _, tensor = make(DEFAULT)
    stream = tensor.stream
    for width in (1, 3, 4, 100):
        bands = stream.bands(width)
        assert sorted(i for band in bands for i in band) == list(range(len(stream.tiles)))
        for band in bands:
            assert len({stream.tiles[i].chunk for i in band}) == 1
            columns = [stream.tiles[i].column for i in band]
            assert columns == sorted(columns)
            assert len(band) <= width


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
    if tensor.stream.head.trellis:
        symbols = symbols / 2
    levels = torch.from_numpy(tensor.stream.classes.full()).long()
    with torch.no_grad():
        # Every place in a chunk by itself, since rows may differ in class.
        places = [
            tensor.codec.synthesis(symbols.float(), levels[..., i], tensor.log2_gain)[..., i]
            for i in range(16)
        ]
    direct = (torch.stack(places, -1) * tensor.scales[:, None, None]).flatten(1)[:, :150].T
    if tensor.row_scales is not None:
        direct = direct * tensor.row_scales[:, None]
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
    bank = TableBank()
    _, tensor = make(DEFAULT, bank=bank)
    assert tensor.stream.head.classes > 1
    data = bytes(tensor.stream.container.view)
    with pytest.raises(BitstreamError, match="levels, its codec 1"):
        CompressedTensor(data, WeightCodec(IDENTITY), bank)
    with pytest.raises(BitstreamError, match="which no residual codec reads"):
        CompressedTensor(data, WeightCodec(RESIDUAL16), bank)


def test_damage_is_found():
    bank = TableBank()
    _, tensor = make(DEFAULT, bank=bank)
    data = bytearray(tensor.stream.container.view)
    data[-100] ^= 1
    damaged = CompressedTensor(bytes(data), tensor.codec, bank)
    with pytest.raises(BitstreamError, match="checksum"):
        damaged.weight()
    with pytest.raises(BitstreamError, match="does not exist"):
        tensor.tile(10_000)
