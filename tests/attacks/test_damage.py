"""Flipped bits, and forgeries of what a compressed tensor adds to a stream."""

import struct
import tracemalloc

import numpy as np
import pytest

from nwc.codec.compressed import CompressedTensor
from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding import rice, tiling
from nwc.coding.bitstream import Bitstream, encode
from nwc.coding.container import Section
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes
from nwc.errors import BitstreamError
from nwc.kernels import rans_numba

HUGE = 2**32 - 1


def refuse(data, message):
    with pytest.raises(BitstreamError, match=message):
        Bitstream(data)


def test_a_flipped_bit_of_the_front(stream):
    damaged = bytearray(stream)
    damaged[8] ^= 4  # 44 rows for 40: as many chunks
    refuse(bytes(damaged), "checksum of the head does not match: the stream is damaged")


@pytest.mark.parametrize("decoder", [tiling.decode_tile, rans_numba.decode_tile])
def test_a_flipped_bit_of_the_payload(stream, parts, decoder):
    at = len(stream) - 8 - len(parts.payload)  # the first word of the first tile
    damaged = bytearray(stream)
    damaged[at] ^= 0x10
    found = Bitstream(bytes(damaged))
    with pytest.raises(BitstreamError, match=r"tile 0: checksum of its \d+ words does not match"):
        found.tile(0, decoder)
    found.tile(1, decoder)  # the others are whole
    with pytest.raises(BitstreamError, match="checksum of the tensor does not match"):
        found.symbols(decoder)


def test_a_flipped_bit_of_the_hash(stream):
    damaged = bytearray(stream)
    damaged[-1] ^= 1
    found = Bitstream(bytes(damaged))
    with pytest.raises(BitstreamError, match="checksum of the tensor does not match"):
        found.symbols()


# What the codec adds


@pytest.fixture(scope="module")
def codec():
    return WeightCodec(CodecConfig(kind="identity", importance=(1.0, 1.0)))


def refuse_tensor(data, codec, message):
    with pytest.raises(BitstreamError, match=message):
        CompressedTensor(data, codec).weight()


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        (b"\0" * 3, "gain has 3 bytes, wanted 4"),
        (struct.pack("<f", 32.0), r"log2 gain is 32.0, wanted one within 32 of 0"),
        (struct.pack("<f", float("nan")), "log2 gain is nan"),
        (struct.pack("<f", float("-inf")), "log2 gain is -inf"),
    ],
)
def test_a_wrong_gain(parts, codec, gain, message):
    parts.sections[parts.place(Section.GAIN)] = (Section.GAIN, bytearray(gain))
    refuse_tensor(parts.sealed(), codec, message)


def test_more_levels_than_the_codec_has(stream):
    codec = WeightCodec(CodecConfig(kind="identity", importance=(1.0,)))
    refuse_tensor(stream, codec, "stream has 2 levels, its codec 1")


def test_errors_of_another_size(parts, codec):
    parts.section(Section.ERRORS).append(0)
    tensor = CompressedTensor(parts.sealed(), codec)
    with pytest.raises(BitstreamError, match="errors have 13 bytes, wanted 12"):
        _ = tensor.errors


def test_no_scale_at_all(parts, codec):
    parts.remove(Section.SCALE)
    refuse_tensor(parts.sealed(), codec, "stream has no section SCALE")


INFINITE, NAN, BIG = float("inf"), float("nan"), 3e38
HALF_INFINITE, HALF_NAN, HALF_ONE = 0x7C00, 0x7E00, 0x3C00


def log_scales(steps, base, codes):
    return struct.pack("<Bf", steps, base) + rice.encode(np.array(codes))


def half_scales(base, bits):
    return struct.pack("<f12H", base, *[bits] * 12)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Section.SCALE, struct.pack("<f", NAN), "wanted a finite float"),
        (Section.SCALE, struct.pack("<f", INFINITE), "wanted a finite float"),
        (Section.SCALE, b"\0\0\0", "wanted a finite float"),
        (Section.SCALES_F16, half_scales(1.0, HALF_ONE)[:-1], "scales have 27 bytes, wanted 28"),
        (Section.SCALES_F16, half_scales(1.0, HALF_NAN), "negative or not finite"),
        (Section.SCALES_F16, half_scales(1.0, HALF_INFINITE), "negative or not finite"),
        (Section.SCALES_F16, half_scales(-1.0, HALF_ONE), "negative or not finite"),
        (Section.SCALES_F16, half_scales(INFINITE, HALF_ONE), "negative or not finite"),
        # Products that are no number, or too large for one: no warning may escape either.
        (Section.SCALES_F16, half_scales(0.0, HALF_INFINITE), "negative or not finite"),
        (Section.SCALES_F16, half_scales(BIG, 0x4000), "negative or not finite"),
        (Section.SCALES_LOG, b"\x04\0\0\0", "scales have 4 bytes, wanted at least 5"),
        (Section.SCALES_LOG, log_scales(0, 1.0, [1] * 12), "0 steps per octave"),
        (Section.SCALES_LOG, log_scales(4, INFINITE, [1] * 12), "base inf"),
        (Section.SCALES_LOG, log_scales(4, NAN, [1] * 12), "base nan"),
        (Section.SCALES_LOG, log_scales(4, 1.0, [1] * 12) + b"\0", r"scales take \d+ of \d+ byte"),
        # A base of 0 times 2^large has no value, and a negative base none above 0.
        (Section.SCALES_LOG, log_scales(1, 0.0, [2**20 - 1] * 12), "base 0.0"),
        (Section.SCALES_LOG, log_scales(4, -1.0, [1] * 12), "base -1.0"),
    ],
    ids=lambda value: f"{len(value)}-bytes" if isinstance(value, bytes) else None,
)
def test_wrong_scales(parts, codec, kind, data, message):
    parts.remove(Section.SCALE)
    parts.add(kind, data)
    refuse_tensor(parts.sealed(), codec, message)


def test_huge_logarithmic_scales_stay_finite(parts, codec):
    parts.remove(Section.SCALE)
    parts.add(Section.SCALES_LOG, log_scales(1, 1.0, [2**20 - 1] * 12))
    assert np.isfinite(CompressedTensor(parts.sealed(), codec).scales.numpy()).all()


# Small files that ask for much


def peak_of_refusing(data):
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError):
            Bitstream(data).symbols()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 2**28 - 16, "tile_chunks": 2**14, "tile_columns": 1},
        {"columns": 2**26, "tile_columns": 2**13, "tile_chunks": 1},
        {"rows": HUGE, "columns": HUGE, "words": HUGE},
        {"rows": 1, "columns": 2**28 - 1, "tile_chunks": 1, "tile_columns": 2**14},
        {"words": 2**31 - 1},
    ],
)
def test_a_huge_shape_takes_no_memory(parts, fields):
    parts.head.update(fields)
    assert peak_of_refusing(parts.sealed()) < 10 * 4 * 40 * 12


def test_more_tables_than_a_stream_can_use_are_not_expanded(parts):
    # Eleven bytes announce a table of 256 zeros, and a stream has use for 256 tables at most.
    claimed = 20_000
    zeros = bytes(2 * claimed) + b"\xff" * claimed + b"\xff" * (8 * claimed)
    parts.sections[0] = (Section.TABLES, bytearray(struct.pack("<H", claimed) + zeros))
    data = parts.sealed()
    assert peak_of_refusing(data) < 10 * len(data) + 2**23


def test_tables_the_map_repeats_are_expanded_once(forge):
    # 16 classes of 16 lanes all name one table.
    table = FrequencyTable(0, np.full(256, 16))
    zeros = np.zeros((16, 1, 16), dtype=np.int16)
    parts = forge(
        encode(
            zeros,
            Classes.by_column(np.arange(16, dtype=np.uint8), 1),
            [[table] * 16] * 16,
            rows=16,
        )
    )
    stream = Bitstream(parts.sealed())
    assert len(stream.tables.tables) == 1
    assert stream.tables.packed.nbytes == 4 * 4096


def test_messages_quote_no_long_runs_of_hostile_bytes(parts, codec):
    parts.sections[parts.place(Section.SCALE)] = (Section.SCALE, bytearray(b"x" * 10_000))
    with pytest.raises(BitstreamError, match="scale") as caught:
        CompressedTensor(parts.sealed(), codec).weight()
    assert len(str(caught.value)) < 300
