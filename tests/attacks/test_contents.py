"""Forged indexes, tables, classes and patches, one for every check of the reader."""

import struct

import numpy as np
import pytest

from nwc.coding import rice, tiling
from nwc.coding.bitstream import Bitstream, encode
from nwc.coding.container import Section
from nwc.coding.tables import FrequencyTable, to_bytes
from nwc.coding.tiling import Classes
from nwc.errors import BitstreamError
from nwc.kernels import rans_numba

HUGE = 2**32 - 1


def refuse(data, message):
    with pytest.raises(BitstreamError, match=message):
        Bitstream(data)


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
    parts = forge(encode(zeros, Classes.by_column(np.zeros(3, np.uint8), 1), constant, rows=16))
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
    refuse(parts.sealed(), f"table map has {size} bytes, wanted 4 or 64")


def test_a_class_out_of_range(parts):
    classes = np.arange(12) % 2
    classes[11] = 2
    parts.sections[2] = (Section.CLASSES, bytearray(rice.encode(classes)))
    refuse(parts.sealed(), "reaches 2, wanted all bytes and values below 2")


def test_a_class_that_only_8_bits_make_valid(parts):
    classes = np.arange(12) % 2
    classes[11] = 256
    parts.sections[2] = (Section.CLASSES, bytearray(rice.encode(classes)))
    refuse(parts.sealed(), "reaches 256, wanted all bytes and values below 2")


def test_bytes_after_the_classes(parts):
    parts.section(Section.CLASSES).append(0)
    refuse(parts.sealed(), r"section CLASSES takes \d of \d bytes")


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
