"""Forged heads, section tables and checksums, one for every check of the reader."""

import numpy as np
import pytest

from nwc.coding.bitstream import Bitstream
from nwc.coding.container import CRITICAL_BIT, Section
from nwc.errors import BitstreamError

HUGE = 2**32 - 1


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
    [
        ("profile", 1),
        ("profile", 2),
        ("trellis", 8),
        ("lanes", 32),
        ("flags", 2),
        ("flags", 0x81),
        ("reserved", b"\0\0\1"),
    ],
)
def test_an_unknown_profile_flag_or_lane_count(parts, field, value):
    parts.head[field] = value
    refuse(parts.sealed(), r"update nwc$")


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
