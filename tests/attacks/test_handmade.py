"""Streams made to mislead, one for every check, each sealed so that only that check sees it."""

import struct
import tracemalloc

import numpy as np
import pytest

from nwc.codec.compressed import CompressedTensor
from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding import rice, tiling
from nwc.coding.bitstream import Bitstream, encode
from nwc.coding.container import CRITICAL_BIT, Section
from nwc.coding.tables import FrequencyTable, to_bytes
from nwc.coding.tiling import Profile
from nwc.errors import BitstreamError
from nwc.kernels import rans_numba

HUGE = 2**32 - 1
TABLES = [[FrequencyTable(-64, np.full(128, 32))], [FrequencyTable(-32, np.full(64, 64))]]


@pytest.fixture(scope="module")
def symbols():
    values = np.random.default_rng(0).integers(-32, 32, (12, 3, 16)).astype(np.int16)
    values[[0, 5, 11], [0, 1, 2], [1, 7, 15]] = [77, -77, 99]
    return values


@pytest.fixture(scope="module")
def stream(symbols):
    """40 rows, 12 columns, two classes, three patches, six tiles."""
    classes = (np.arange(12) % 2).astype(np.uint8)
    profile = Profile(32, 128)
    extra = {
        Section.GAIN: struct.pack("<f", 1.0),
        Section.SCALE: struct.pack("<f", 0.5),
        Section.ERRORS: bytes(12),
    }
    return encode(symbols, classes, TABLES, rows=40, profile=profile, extra=extra)


@pytest.fixture
def parts(stream, forge):
    return forge(stream)


def refuse(data, message):
    with pytest.raises(BitstreamError, match=message):
        Bitstream(data)


def test_a_forgery_without_a_change_is_the_stream(stream, parts, symbols):
    assert parts.sealed() == stream
    assert len(Bitstream(stream).tiles) == 6
    assert np.array_equal(Bitstream(stream).symbols(), symbols)


# The container


def test_every_truncation_raises(stream):
    for size in range(len(stream)):
        with pytest.raises(BitstreamError):
            Bitstream(stream[:size])


def test_every_truncation_raises_with_its_checksums_right(stream, reseal):
    for size in range(len(stream)):
        with pytest.raises(BitstreamError):
            Bitstream(reseal(stream[:size]))


def test_nothing_at_all():
    refuse(b"", "stream has 0 bytes, wanted at least 48")


def test_a_byte_more(stream, reseal):
    refuse(reseal(stream + b"\0"), r"sections end at byte \d+, wanted \d+")


def test_wrong_magic(parts):
    parts.head["magic"] = b"PK\3\4"
    refuse(parts.sealed(), r"stream begins with b'PK\\x03\\x04', wanted b'NWCT'")


@pytest.mark.parametrize("major", [0, 2, 255])
def test_another_major_version(parts, major):
    parts.head["major"] = major
    refuse(parts.sealed(), rf"stream has version {major}\.0, this nwc reads 1\.x: update nwc")


def test_a_newer_minor_version_is_read(parts, symbols):
    parts.head["minor"] = 9
    assert np.array_equal(Bitstream(parts.sealed()).symbols(), symbols)


@pytest.mark.parametrize(
    ("field", "value"),
    [("profile", 1), ("lanes", 32), ("flags", 2), ("flags", 0x81), ("reserved", 1)],
)
def test_an_unknown_profile_flag_or_lane_count(parts, field, value):
    parts.head[field] = value
    refuse(parts.sealed(), r"this nwc reads profile 0 with 16 lanes: update nwc")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rows", 0, "stream is 0 x 12, wanted at least 1 x 1"),
        ("columns", 0, "stream is 40 x 0, wanted at least 1 x 1"),
        ("rows", HUGE, f"stream is {HUGE} x 12, .* at most {HUGE} symbols"),
        ("columns", HUGE, f"stream is 40 x {HUGE}, .* at most {HUGE} symbols"),
        ("rows", 2**27, "index has 432 bytes, wanted 12582912 tiles of 72"),
        ("columns", 2**26, "index has 432 bytes, wanted 33554432 tiles of 72"),
        ("tile_chunks", 0, "tile of 0 chunks x 4 columns does not fit"),
        ("tile_chunks", 4, "tile of 4 chunks x 4 columns does not fit 3 x 12"),
        ("tile_chunks", HUGE, f"tile of {HUGE} chunks x 4 columns does not fit"),
        ("tile_columns", 0, "tile of 2 chunks x 0 columns does not fit"),
        ("tile_columns", 13, "tile of 2 chunks x 13 columns does not fit 3 x 12"),
        ("tile_columns", HUGE, f"tile of 2 chunks x {HUGE} columns does not fit"),
        ("classes", 0, "stream has 0 classes, wanted 1 to 16"),
        ("classes", 17, "stream has 17 classes, wanted 1 to 16"),
        ("words", HUGE, "cannot hold 8 sections and the payload that its head announces"),
        ("section_count", 65, "stream has 65 sections, wanted at most 64"),
        ("section_count", 2**16 - 1, "stream has 65535 sections, wanted at most 64"),
        ("section_count", 64, "section|cannot hold 64 sections"),
        ("section_count", 0, r"sections end at byte 36, wanted \d+"),
    ],
)
def test_a_lying_head(parts, field, value, message):
    parts.head[field] = value
    refuse(parts.sealed(), message)


def test_another_tile_shape_with_as_many_tiles(parts):
    parts.head["tile_columns"] = 5  # 5 + 5 + 2 columns for 4 + 4 + 4: only decoding can tell
    with pytest.raises(BitstreamError, match="tile 0: "):
        Bitstream(parts.sealed()).symbols()


def test_a_shape_just_too_large(parts):
    parts.head.update(rows=2**16, columns=2**16, tile_chunks=1, tile_columns=1)
    refuse(parts.sealed(), "stream is 65536 x 65536, .* at most 4294967295 symbols")


def test_a_tile_just_too_large(parts):
    parts.head.update(rows=2**17, columns=64, tile_chunks=2**13, tile_columns=3)
    refuse(parts.sealed(), "or the limit of 262144 symbols")


def test_an_unknown_critical_section(parts):
    parts.add(CRITICAL_BIT | 0x7777, b"future")
    refuse(parts.sealed(), "section kind 0xf777 is unknown: update nwc")


def test_an_unknown_section_that_is_not_critical_is_skipped(parts, symbols):
    parts.add(0x7777, b"future")
    stream = Bitstream(parts.sealed())
    assert bytes(stream.container.sections[0x7777]) == b"future"
    assert np.array_equal(stream.symbols(), symbols)


def test_a_repeated_section(parts):
    parts.add(Section.GAIN, bytes(4))
    refuse(parts.sealed(), r"section 8 \(kind 0x8013, 4 bytes\) is repeated or ends at byte")


@pytest.mark.parametrize("length", [HUGE, 2**31, 10_000])
@pytest.mark.parametrize("kind", [Section.TABLES, Section.INDEX, Section.ERRORS])
def test_a_section_longer_than_the_stream(parts, kind, length):
    parts.lengths[parts.place(kind)] = length
    refuse(parts.sealed(), rf"section \d \(kind {kind:#06x}, {length} bytes\) is repeated or ends")


def test_sections_that_overlap(parts):
    # The first says it reaches into the second: every later one is shifted past the end.
    parts.lengths[0] = len(parts.sections[0][1]) + 1
    refuse(parts.sealed(), r"section 7 .* ends at byte \d+ of \d+")


def test_a_gap_after_the_sections(parts):
    parts.lengths[7] = 11
    refuse(parts.sealed(), r"sections end at byte \d+, wanted \d+")


def test_a_reserved_field_of_a_section(parts, reseal):
    data = bytearray(parts.raw())
    data[36 + 2] = 1
    refuse(reseal(data), r"section 0 \(kind 0x8001, \d+ bytes\) is repeated or ends")


@pytest.mark.parametrize(
    "kind", [Section.TABLES, Section.TABLE_MAP, Section.CLASSES, Section.INDEX]
)
def test_a_missing_section(parts, kind):
    parts.remove(kind)
    refuse(parts.sealed(), f"stream has no section {kind.name}")


# The index


def test_an_index_of_another_length(parts):
    parts.section(Section.INDEX).extend(bytes(72))
    refuse(parts.sealed(), "index has 504 bytes, wanted 6 tiles of 72")


def test_an_index_cut_inside_an_entry(parts):
    del parts.section(Section.INDEX)[-1]
    refuse(parts.sealed(), "index has 431 bytes, wanted 6 tiles of 72")


@pytest.mark.parametrize("words", [0, HUGE])
def test_an_index_whose_words_do_not_sum_to_the_payload(parts, words):
    struct.pack_into("<I", parts.section(Section.INDEX), 72, words)
    total = parts.head["words"]
    refuse(parts.sealed(), rf"tiles have \d+ words, the head says {total}")


def test_word_counts_that_wrap_around_32_bits(parts):
    # The first two entries take 2^32 more together: a 32-bit sum would not notice.
    index = parts.section(Section.INDEX)
    for at in (0, 72):
        words = struct.unpack_from("<I", index, at)[0]
        struct.pack_into("<I", index, at, words + 2**31)
    refuse(parts.sealed(), r"tiles have \d+ words, the head says")


@pytest.mark.parametrize("decoder", [tiling.decode_tile, rans_numba.decode_tile])
def test_an_index_that_moves_words_between_tiles(parts, decoder):
    index = parts.section(Section.INDEX)
    for at, change in ((0, -1), (72, 1)):
        words = struct.unpack_from("<I", index, at)[0]
        struct.pack_into("<I", index, at, words + change)
    stream = Bitstream(parts.sealed())
    with pytest.raises(BitstreamError, match=r"tile 0: .* wants"):
        stream.tile(0, decoder)
    with pytest.raises(BitstreamError, match="tile 1: "):
        stream.tile(1, decoder)


@pytest.mark.parametrize("decoder", [tiling.decode_tile, rans_numba.decode_tile])
def test_wrong_states(parts, decoder):
    # A state a multiple of 2^12 away decodes the same first symbol and then goes astray.
    index = parts.section(Section.INDEX)
    for lane, change in ((0, 1 << 12), (15, 1 << 20)):
        at = 72 + 8 + 4 * lane
        struct.pack_into("<I", index, at, struct.unpack_from("<I", index, at)[0] ^ change)
    stream = Bitstream(parts.sealed())
    stream.tile(0, decoder)
    with pytest.raises(BitstreamError, match=r"tile 1: (lane|tile ends|a lane)"):
        stream.tile(1, decoder)


@pytest.mark.parametrize("decoder", [tiling.decode_tile, rans_numba.decode_tile])
def test_wrong_end_states(forge, decoder):
    # Constant tables move no state: whatever a lane starts from, it ends at.
    zeros = np.zeros((3, 1, 16), dtype=np.int16)
    constant = [[FrequencyTable(0, np.array([4096]))]]
    parts = forge(encode(zeros, np.zeros(3, dtype=np.uint8), constant, rows=16))
    struct.pack_into("<I", parts.section(Section.INDEX), 8 + 4 * 9, 65537)
    with pytest.raises(BitstreamError, match="tile 0: lane 9 ends at state 65537, wanted 65536"):
        Bitstream(parts.sealed()).symbols(decoder)


# Tables and classes


def own_tables(*tables):
    return struct.pack("<H", len(tables)) + to_bytes(list(tables))


def test_tables_too_short_for_their_count(parts):
    parts.sections[0] = (Section.TABLES, bytearray(b"\x02"))
    refuse(parts.sealed(), "section TABLES has 1 bytes, wanted at least 2")


@pytest.mark.parametrize("total", [4095, 4097, 0])
def test_a_table_that_does_not_sum_to_4096(parts, total):
    steps = rice.zigzag(np.diff([total // 2, total - total // 2], prepend=0))
    forged = struct.pack("<HhB", 1, 0, 1) + rice.encode(steps)
    parts.sections[0] = (Section.TABLES, bytearray(forged))
    refuse(parts.sealed(), f"table frequencies sum to {total} with smallest .*, wanted 4096")


def test_a_table_with_a_negative_frequency(parts):
    steps = rice.zigzag(np.diff([5000, -904], prepend=0))
    forged = struct.pack("<HhB", 1, 0, 1) + rice.encode(steps)
    parts.sections[0] = (Section.TABLES, bytearray(forged))
    refuse(parts.sealed(), "table frequencies sum to 4096 with smallest -904")


def test_a_table_beyond_16_bits(parts):
    forged = struct.pack("<HhB", 1, 2**15 - 1, 1) + rice.encode(rice.zigzag(np.array([2048, 0])))
    parts.sections[0] = (Section.TABLES, bytearray(forged))
    refuse(parts.sealed(), "wanted 16-bit symbols")


def test_bytes_after_the_tables(parts):
    parts.section(Section.TABLES).append(0)
    refuse(parts.sealed(), r"tables end after \d+ of \d+ bytes")


def test_more_tables_announced_than_stored(parts):
    parts.section(Section.TABLES)[:2] = b"\xff\xff"
    refuse(parts.sealed(), "65535 tables")


@pytest.mark.parametrize("place", [2, 0x7FFF])
def test_an_own_table_that_is_missing(parts, place):
    struct.pack_into("<H", parts.section(Section.TABLE_MAP), 2, place)
    refuse(parts.sealed(), f"own table {place} is missing, there are 2")


@pytest.mark.parametrize("place", [0, 0x7FFF])
def test_a_shared_table_that_is_missing(parts, place):
    struct.pack_into("<H", parts.section(Section.TABLE_MAP), 2, 0x8000 | place)
    refuse(parts.sealed(), f"shared table {place} is missing, there are 0")


@pytest.mark.parametrize("size", [0, 1, 2, 5, 6, 62, 66])
def test_a_table_map_of_another_size(parts, size):
    parts.sections[1] = (Section.TABLE_MAP, bytearray(size))
    refuse(parts.sealed(), f"table map has {size} bytes for 2 classes, wanted 4 or 64")


def test_a_class_out_of_range(parts):
    classes = np.arange(12) % 2
    classes[11] = 2
    parts.sections[2] = (Section.CLASSES, bytearray(rice.encode(classes)))
    refuse(parts.sealed(), "reach 2, wanted all bytes and values below 2")


def test_a_class_that_only_8_bits_make_valid(parts):
    classes = np.arange(12) % 2
    classes[11] = 256
    parts.sections[2] = (Section.CLASSES, bytearray(rice.encode(classes)))
    refuse(parts.sealed(), "reach 256, wanted all bytes and values below 2")


def test_bytes_after_the_classes(parts):
    parts.section(Section.CLASSES).append(0)
    refuse(parts.sealed(), r"classes take \d of \d bytes")


def test_fewer_classes_than_columns(parts):
    parts.sections[2] = (Section.CLASSES, bytearray(1))
    refuse(parts.sealed(), "Rice code ends after 0 of 12 values")


# Patches


def patches(*pairs):
    places, values = zip(*pairs, strict=True)
    return bytearray(struct.pack(f"<{len(pairs)}I{len(pairs)}i", *places, *values))


@pytest.mark.parametrize(
    "pairs",
    [
        [(5, 1), (4, 1)],
        [(5, 1), (5, 2)],
        [(576, 1)],
        [(0, 1), (HUGE, 1)],
        [(HUGE, 1), (0, 1)],
    ],
)
def test_patches_out_of_order_or_range(parts, pairs):
    parts.sections[parts.place(Section.PATCHES)] = (Section.PATCHES, patches(*pairs))
    refuse(parts.sealed(), "patches are not in ascending order below 576")


@pytest.mark.parametrize("value", [2**15, -(2**15) - 1, 2**31 - 1, -(2**31)])
def test_a_patch_that_is_no_symbol(parts, value):
    parts.sections[parts.place(Section.PATCHES)] = (Section.PATCHES, patches((3, value)))
    refuse(parts.sealed(), "a patch holds a value that is not a 16-bit symbol")


@pytest.mark.parametrize("size", [1, 4, 7, 9])
def test_a_patch_list_of_odd_size(parts, size):
    parts.sections[parts.place(Section.PATCHES)] = (Section.PATCHES, bytearray(size))
    refuse(parts.sealed(), f"patch list has {size} bytes, wanted a multiple of 8")


def test_the_last_symbol_can_be_patched(parts):
    parts.sections[parts.place(Section.PATCHES)] = (Section.PATCHES, patches((575, -5)))
    assert Bitstream(parts.sealed()).symbols()[11, 2, 15] == -5


# Checksums


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
    parts = forge(encode(zeros, np.arange(16, dtype=np.uint8), [[table] * 16] * 16, rows=16))
    stream = Bitstream(parts.sealed())
    assert len(stream.tables.tables) == 1
    assert stream.tables.packed.nbytes == 4 * 4096


def test_messages_quote_no_long_runs_of_hostile_bytes(parts, codec):
    parts.sections[parts.place(Section.SCALE)] = (Section.SCALE, bytearray(b"x" * 10_000))
    with pytest.raises(BitstreamError, match="scale") as caught:
        CompressedTensor(parts.sealed(), codec).weight()
    assert len(str(caught.value)) < 300
