"""The outer bytes of a stream: head, section table, sections, checksums, payload.

    head (36 bytes) | section table | sections | CRC32C of all so far | payload words | XXH3-64

Nothing here knows what a section means. `docs/bitstream.md` is the frozen specification.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import crc32c
import numpy as np
import xxhash

from nwc.coding.rans import LANES
from nwc.coding.tiling import MAX_TILE
from nwc.coding.trellis import TRELLISES
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"NWCT"
MAJOR = 1
SCALAR_PROFILE, TRELLIS_PROFILE = 0, 1
"""Profiles; 2 is set aside for progressive streams."""

MAX_SYMBOLS = 2**32 - 1
MAX_CLASSES = 16
MAX_SECTIONS = 64
CRITICAL_BIT = 0x8000
TRANSPOSED_FLAG = 1

_HEAD = struct.Struct("<4sBBBBIIIIBBHIB3s")
_SECTION = struct.Struct("<HHI")


class Section(IntEnum):
    """Kinds of section. A reader refuses an unknown kind with the top bit set, skips others."""

    TABLES = 0x8001
    TABLE_MAP = 0x8002
    CLASSES = 0x8003
    INDEX = 0x8004
    PATCHES = 0x8005
    ROW_CLASSES = 0x8006
    SCALES_F16 = 0x8010
    SCALES_LOG = 0x8011
    SCALE = 0x8012
    GAIN = 0x8013
    ROW_SCALES = 0x8014
    ERRORS = 0x0020


_KINDS = frozenset(int(kind) for kind in Section)
_SINCE_MINOR_1 = frozenset({Section.ROW_CLASSES, Section.ROW_SCALES})


class Head(NamedTuple):
    """Shape of a stream.

    Args:
        rows: m, without padding.
        columns: n.
        tile_chunks: chunks of a tile, less at the lower edge.
        tile_columns: columns of a tile, less at the right edge.
        classes: number of classes.
        transposed: the checkpoint holds the transpose of this matrix.
        words: 16-bit words of the payload.
        trellis: states of the trellis; 0 for scalar streams.
    """

    rows: int
    columns: int
    tile_chunks: int
    tile_columns: int
    classes: int
    transposed: bool
    words: int
    trellis: int = 0

    @property
    def chunks(self) -> int:
        """Chunks in a column."""
        return -(-self.rows // LANES)


class _Fields(NamedTuple):
    view: memoryview
    head: Head
    sections: dict[int, memoryview]
    payload: NDArray[np.uint16]


class Container(_Fields):
    """A parsed stream whose front checksum holds.

    Args:
        view: all its bytes; nobody changes them.
        head: its shape, checked to be possible.
        sections: kind -> bytes.
        payload: all words.
    """

    def section(self, kind: Section) -> memoryview:
        """Bytes of a section.

        Raises:
            BitstreamError: the stream has none of this kind.
        """
        if kind not in self.sections:
            raise BitstreamError(f"stream has no section {kind.name}")
        return self.sections[kind]

    def check_hash(self) -> None:
        """Raise BitstreamError unless the hash of the whole stream, computed once, matches."""
        if not self._is_whole:
            raise BitstreamError("checksum of the tensor does not match: the stream is damaged")

    @cached_property
    def _is_whole(self) -> bool:
        stored = int.from_bytes(self.view[-8:], "little")
        return xxhash.xxh3_64_intdigest(self.view[:-8]) == stored


def pack(head: Head, sections: Mapping[Section, bytes], payload: list[bytes]) -> bytes:
    """Assemble a stream."""
    profile = TRELLIS_PROFILE if head.trellis else SCALAR_PROFILE
    # What version 1.0 can express keeps its bytes.
    minor = 1 if head.trellis or _SINCE_MINOR_1 & sections.keys() else 0
    front = _HEAD.pack(
        MAGIC, MAJOR, minor, profile, LANES,
        head.rows, head.columns, head.tile_chunks, head.tile_columns,
        head.classes, TRANSPOSED_FLAG * head.transposed, len(sections), head.words,
        head.trellis, bytes(3),
    )  # fmt: skip
    front += b"".join(_SECTION.pack(kind, 0, len(data)) for kind, data in sections.items())
    front += b"".join(sections.values())
    front += struct.pack("<I", crc32c.crc32c(front))
    body = front + b"".join(payload)
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def unpack(data: bytes | memoryview) -> Container:
    """Parse a stream and verify its front; sizes are checked before anything is allocated.

    Raises:
        BitstreamError: data is not a valid stream of a version this reader knows.
    """
    view = memoryview(data).cast("B")
    if len(view) < _HEAD.size + 12:
        raise BitstreamError(f"stream has {len(view)} bytes, wanted at least {_HEAD.size + 12}")
    (
        magic, major, minor, profile, lanes,
        rows, columns, tile_chunks, tile_columns,
        classes, flags, section_count, words, states, reserved,
    ) = _HEAD.unpack_from(view)  # fmt: skip
    if magic != MAGIC:
        raise BitstreamError(f"stream begins with {magic!r}, wanted {MAGIC!r}")
    if major != MAJOR:
        raise BitstreamError(
            f"stream has version {major}.{minor}, this nwc reads {MAJOR}.x: update nwc"
        )
    known = {SCALAR_PROFILE: (0,), TRELLIS_PROFILE: tuple(TRELLISES)}.get(profile, ())
    if states not in known or lanes != LANES or flags & ~TRANSPOSED_FLAG or any(reserved):
        raise BitstreamError(
            f"stream has profile {profile}, {states} trellis states, {lanes} lanes, flags "
            f"{flags:#x}; this nwc reads profile {SCALAR_PROFILE}, or {TRELLIS_PROFILE} with one "
            f"of {tuple(TRELLISES)} states, and {LANES} lanes: update nwc"
        )
    front = len(view) - 8 - 2 * words - 4
    sections = _sections(view, section_count, front)
    (stored,) = struct.unpack_from("<I", view, front)
    if stored != crc32c.crc32c(view[:front]):
        raise BitstreamError("checksum of the head does not match: the stream is damaged")
    transposed = bool(flags & TRANSPOSED_FLAG)
    head = Head(rows, columns, tile_chunks, tile_columns, classes, transposed, words, states)
    _check_shape(head)
    payload = np.frombuffer(view[front + 4 : front + 4 + 2 * words], "<u2")
    return Container(view, head, sections, payload)


def _sections(view: memoryview, count: int, front: int) -> dict[int, memoryview]:
    if count > MAX_SECTIONS:
        raise BitstreamError(f"stream has {count} sections, wanted at most {MAX_SECTIONS}")
    end = _HEAD.size + count * _SECTION.size
    if front < end:
        raise BitstreamError(
            f"stream of {len(view)} bytes cannot hold {count} sections and the payload that its "
            "head announces"
        )
    sections: dict[int, memoryview] = {}
    for i in range(count):
        kind, reserved, length = _SECTION.unpack_from(view, _HEAD.size + i * _SECTION.size)
        if reserved or kind in sections or end + length > front:
            raise BitstreamError(
                f"section {i} (kind {kind:#06x}, {length} bytes) is repeated or ends at byte "
                f"{end + length} of {front}"
            )
        if kind & CRITICAL_BIT and kind not in _KINDS:
            raise BitstreamError(f"section kind {kind:#06x} is unknown: update nwc")
        sections[kind] = view[end : end + length]
        end += length
    if end != front:
        raise BitstreamError(f"sections end at byte {end}, wanted {front}")
    return sections


def _check_shape(head: Head) -> None:
    symbols = head.chunks * LANES * head.columns
    if not (head.rows and head.columns) or symbols > MAX_SYMBOLS:
        raise BitstreamError(
            f"stream is {head.rows} x {head.columns}, wanted at least 1 x 1 and at most "
            f"{MAX_SYMBOLS} symbols"
        )
    if (
        not 0 < head.tile_chunks <= head.chunks
        or not 0 < head.tile_columns <= head.columns
        or head.tile_chunks * head.tile_columns * LANES > MAX_TILE
    ):
        raise BitstreamError(
            f"tile of {head.tile_chunks} chunks x {head.tile_columns} columns does not fit "
            f"{head.chunks} x {head.columns} or the limit of {MAX_TILE} symbols"
        )
    if not 1 <= head.classes <= MAX_CLASSES:
        raise BitstreamError(f"stream has {head.classes} classes, wanted 1 to {MAX_CLASSES}")
