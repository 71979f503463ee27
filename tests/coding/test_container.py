import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding.container import MAGIC, Head, Section, pack, unpack
from nwc.errors import BitstreamError

HEAD = Head(rows=20, columns=3, tile_chunks=2, tile_columns=3, classes=1, transposed=True, words=2)
SECTIONS = {Section.TABLES: b"tables", Section.GAIN: b"", Section.ERRORS: b"errors"}
PAYLOAD = [b"\x01\x02", b"\x03\x04"]


def test_what_is_packed_comes_back():
    container = unpack(pack(HEAD, SECTIONS, PAYLOAD))
    container.check_hash()
    assert container.head == HEAD
    assert {kind: bytes(data) for kind, data in container.sections.items()} == SECTIONS
    assert container.payload.tolist() == [0x0201, 0x0403]  # little-endian


def test_layout_of_the_front():
    data = pack(HEAD, SECTIONS, PAYLOAD)
    assert data[:8] == MAGIC + bytes([1, 0, 0, 16])
    assert np.frombuffer(data[8:24], "<u4").tolist() == [20, 3, 2, 3]
    assert data[24:28] == bytes([1, 1, 3, 0])
    assert np.frombuffer(data[28:36], "<u4").tolist() == [2, 0]
    assert data[36:44] == b"\x01\x80\x00\x00\x06\x00\x00\x00"
    assert data[60:72] == b"tableserrors"
    assert len(data) == 72 + 4 + 4 + 8


def test_an_empty_payload_and_no_sections_are_allowed():
    container = unpack(pack(HEAD._replace(words=0, transposed=False), {}, []))
    container.check_hash()
    assert len(container.payload) == 0
    assert container.sections == {}
    assert not container.head.transposed


@pytest.mark.parametrize("kind", [bytearray, memoryview, np.array])
def test_any_buffer_is_read(kind):
    data = pack(HEAD, SECTIONS, PAYLOAD)
    data = np.frombuffer(data, dtype=np.uint8) if kind is np.array else kind(data)
    assert unpack(data).head == HEAD


def test_a_missing_section_is_named():
    with pytest.raises(BitstreamError, match="stream has no section INDEX"):
        unpack(pack(HEAD, SECTIONS, PAYLOAD)).section(Section.INDEX)


def test_chunks_count_the_padding():
    assert [HEAD._replace(rows=rows).chunks for rows in (1, 16, 17, 2**32 - 1)] == [1, 1, 2, 2**28]


@settings(deadline=None)
@given(st.data())
def test_every_flipped_bit_is_found(data):
    good = bytearray(pack(HEAD, SECTIONS, PAYLOAD))
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BitstreamError):
        unpack(bytes(good)).check_hash()


@settings(deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_raise(data, with_magic):
    with pytest.raises(BitstreamError):
        unpack(MAGIC + b"\x01\x00\x00\x10" + data if with_magic else data)
