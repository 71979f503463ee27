"""Forging streams: take one apart, change it, put it together with every checksum right."""

import struct
from dataclasses import dataclass
from pathlib import Path

import crc32c
import numpy as np
import pytest
import xxhash

from nwc.coding.bitstream import encode
from nwc.coding.container import Section
from nwc.coding.tables import FrequencyTable, TableBank
from nwc.coding.tiling import Classes, Profile

GOLDEN = Path(__file__).parents[1] / "golden"

HEAD = struct.Struct("<4sBBBBIIIIBBHIB3s")
FIELDS = [
    *("magic", "major", "minor", "profile", "lanes"),
    *("rows", "columns", "tile_chunks", "tile_columns"),
    *("classes", "flags", "section_count", "words", "trellis", "reserved"),
]
SECTION = struct.Struct("<HHI")
TILE = struct.Struct("<II16I")


def reseal(data):
    """The bytes with their checksums recomputed, as far as a damaged structure lets them be."""
    data = bytearray(data)
    if len(data) < HEAD.size + 12:
        return bytes(data)
    head = dict(zip(FIELDS, HEAD.unpack_from(data), strict=True))
    front = len(data) - 12 - 2 * head["words"]
    if front >= HEAD.size:
        start = HEAD.size + SECTION.size * head["section_count"]
        for i in range(head["section_count"]):
            if HEAD.size + SECTION.size * (i + 1) > front or start > front:
                break
            kind, _, length = SECTION.unpack_from(data, HEAD.size + SECTION.size * i)
            if kind == Section.INDEX:
                _reseal_tiles(data, start, min(start + length, front), front + 4)
            start += length
        struct.pack_into("<I", data, front, crc32c.crc32c(data[:front]))
    struct.pack_into("<Q", data, len(data) - 8, xxhash.xxh3_64_intdigest(data[:-8]))
    return bytes(data)


def _reseal_tiles(data, index, end, payload):
    for at in range(index, end - TILE.size + 1, TILE.size):
        (words,) = struct.unpack_from("<I", data, at)
        checksum = crc32c.crc32c(data[payload : min(payload + 2 * words, len(data) - 8)])
        struct.pack_into("<I", data, at + 4, checksum)
        payload += 2 * words


@dataclass
class Forgery:
    """The parts of a stream, free to be changed.

    `lengths` replaces what the section table says of a section's length, by its place.
    """

    head: dict
    sections: list
    payload: bytearray
    lengths: dict

    @classmethod
    def of(cls, data):
        head = dict(zip(FIELDS, HEAD.unpack_from(data), strict=True))
        end = HEAD.size + SECTION.size * head["section_count"]
        sections = []
        for i in range(head["section_count"]):
            kind, _, length = SECTION.unpack_from(data, HEAD.size + SECTION.size * i)
            sections.append((kind, bytearray(data[end : end + length])))
            end += length
        return cls(head, sections, bytearray(data[end + 4 : -8]), {})

    def section(self, kind):
        return next(data for at, data in self.sections if at == kind)

    def place(self, kind):
        return [at for at, _ in self.sections].index(kind)

    def remove(self, kind):
        del self.sections[self.place(kind)]
        self.head["section_count"] -= 1

    def add(self, kind, data):
        self.sections.append((kind, bytearray(data)))
        self.head["section_count"] += 1

    def raw(self):
        """The bytes with checksums of zero."""
        front = HEAD.pack(*(self.head[name] for name in FIELDS))
        for i, (kind, data) in enumerate(self.sections):
            front += SECTION.pack(kind, 0, self.lengths.get(i, len(data)))
        front += b"".join(bytes(data) for _, data in self.sections)
        return front + bytes(4) + bytes(self.payload) + bytes(8)

    def sealed(self):
        """The bytes with every checksum right."""
        return reseal(self.raw())


@pytest.fixture(scope="session")
def forge():
    """`Forgery.of`: the parts of a stream."""
    return Forgery.of


@pytest.fixture(scope="session", name="reseal")
def reseal_fixture():
    """The function `reseal`."""
    return reseal


@pytest.fixture(scope="session")
def golden():
    """Name -> bytes and bank of every golden stream."""
    streams = {}
    for path in sorted(GOLDEN.glob("v*/*.nwct")):
        bank = path.with_suffix(".bank")
        shared = TableBank.from_bytes(bank.read_bytes()) if bank.exists() else None
        streams[path.stem] = (path.read_bytes(), shared)
    return streams


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
    both = Classes.by_column(classes, 3)
    return encode(symbols, both, TABLES, rows=40, profile=profile, extra=extra)


@pytest.fixture
def parts(stream, forge):
    return forge(stream)
