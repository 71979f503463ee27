"""NWC-RANS v1: one matrix of integer symbols, and whatever travels with it, as bytes.

`docs/bitstream.md` is the frozen, byte-level specification of what this module reads and writes.

    head (40 bytes) | section table | sections | CRC32C of all so far | payload words | XXH3-64

Symbols form an array [columns, chunks, 16]. They are cut into tiles, strips of `tile_columns`
columns and `tile_chunks` chunks; each tile codes its columns one after the other, each column's
chunks downwards, 16 lanes to a chunk. Tiles decode independently.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import crc32c
import numpy as np
import xxhash

from nwc.coding import rans, rice
from nwc.coding.tables import FrequencyTable, TableBank, cost, from_bytes, from_counts, to_bytes
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"NWCT"
MAJOR, MINOR = 1, 0
SCALAR_PROFILE = 0

_HEAD = struct.Struct("<4sBBBBIIIIBBHII")
_SECTION = struct.Struct("<HHI")
_TILE = struct.Struct("<II16I")

MAX_TILE_SYMBOLS = 2**18
MAX_SYMBOLS = 2**32 - 1
MAX_SECTIONS = 64
BANK_BIT = 0x8000
CRITICAL_BIT = 0x8000
TRANSPOSED_FLAG = 1


class Section(IntEnum):
    """Kinds of section. A reader refuses an unknown kind with the top bit set, skips others."""

    TABLES = 0x8001
    TABLE_MAP = 0x8002
    CLASSES = 0x8003
    INDEX = 0x8004
    PATCHES = 0x8005
    SCALES_F16 = 0x8010
    SCALES_LOG = 0x8011
    SCALE = 0x8012
    GAIN = 0x8013
    ERRORS = 0x0020


_KINDS = frozenset(int(kind) for kind in Section)


class Profile(NamedTuple):
    """How a matrix is cut into tiles: rows at most, and weights wished for."""

    rows: int
    weights: int


PROFILES: dict[str, Profile] = {
    "balanced": Profile(4096, 2**15),
    "archive": Profile(4096, 2**18),
    "latency": Profile(4096, 2**14),
}

TileDecoder = Callable[
    ["NDArray[np.uint16]", "NDArray[np.uint32]", "NDArray[np.uint8]", int, "DecodingTables"],
    "NDArray[np.int16]",
]
"""(words, states [16], classes of the columns, chunks, tables) -> symbols [columns, chunks, 16]."""

TileEncoder = Callable[
    ["NDArray[np.int16]", "NDArray[np.uint8]", "EncodingTables"],
    "tuple[NDArray[np.uint16], NDArray[np.uint32]]",
]
"""(symbols [columns, chunks, 16], classes of the columns, tables) -> words, states [16]."""


@dataclass(frozen=True)
class EncodingTables:
    """Tables of a matrix, ready to encode with.

    Args:
        tables: the distinct tables.
        choice: [classes, 16], which table codes each class and lane.
    """

    tables: list[FrequencyTable]
    choice: NDArray[np.int64]


@dataclass(frozen=True)
class DecodingTables(EncodingTables):
    """The same with what a decoder needs."""

    @cached_property
    def packed(self) -> NDArray[np.uint32]:
        """`rans.lookup` of the tables."""
        return rans.lookup(self.tables)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Smallest symbol of each table."""
        return np.array([table.first for table in self.tables], dtype=np.int64)


class Tile(NamedTuple):
    """Place of a tile in its matrix, and of its words in the payload."""

    column: int
    columns: int
    chunk: int
    chunks: int
    word: int
    words: int
    checksum: int
    states: NDArray[np.uint32]


def encode_tile(
    symbols: NDArray[np.int16], classes: NDArray[np.uint8], tables: EncodingTables
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Plain `TileEncoder`."""
    choice = np.repeat(tables.choice[classes], symbols.shape[1], axis=0)
    return rans.encode(symbols.reshape(-1, rans.LANES).astype(np.int64), choice, tables.tables)


def decode_tile(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    chunks: int,
    tables: DecodingTables,
) -> NDArray[np.int16]:
    """Plain `TileDecoder`."""
    choice = np.repeat(tables.choice[classes], chunks, axis=0)
    symbols = rans.decode(words, states, choice, tables.tables)
    return symbols.reshape(len(classes), chunks, rans.LANES).astype(np.int16)


def tile_shape(chunks: int, columns: int, profile: Profile) -> tuple[int, int]:
    """Chunks and columns of a tile.

    Example:
        >>> tile_shape(256, 4096, PROFILES["balanced"])
        (256, 8)
    """
    tile_chunks = max(1, min(chunks, profile.rows // rans.LANES))
    wished = profile.weights // (tile_chunks * rans.LANES)
    return tile_chunks, max(1, min(columns, wished))


def choose_tables(
    symbols: NDArray[np.int16],
    classes: NDArray[np.uint8],
    class_count: int,
    share_channels: bool,
    priors: list[list[FrequencyTable]] | None,
) -> list[list[FrequencyTable]]:
    """For each class, one table (or one a channel): counted or prior, whichever is smaller.

    Args:
        symbols: [columns, chunks, 16].
        classes: class of each column.
        class_count: number of classes.
        share_channels: one table for all 16 channels of a class.
        priors: for each class one table, or one a channel; None if there is no prior.
    """
    chosen = []
    for k in range(class_count):
        members = symbols[classes == k]
        row = []
        for channel in range(1 if share_channels else rans.LANES):
            values = members if share_channels else members[:, :, channel]
            prior = None if priors is None else priors[k][channel if len(priors[k]) > 1 else 0]
            row.append(_choose_table(values.ravel(), prior))
        chosen.append(row)
    return chosen


def _choose_table(values: NDArray[np.int16], prior: FrequencyTable | None) -> FrequencyTable:
    if len(values) == 0:
        return prior or FrequencyTable(0, np.array([4096]))
    first = int(values.min())
    counts = np.bincount(values.astype(np.int64) - first)
    own = from_counts(first, counts)
    own_bits = cost(own, first, counts) + 8 * len(to_bytes([own]))
    return own if prior is None or own_bits < cost(prior, first, counts) else prior


def encode(
    symbols: NDArray[np.int16],
    classes: NDArray[np.uint8],
    tables: list[list[FrequencyTable]],
    *,
    rows: int,
    profile: Profile = PROFILES["balanced"],
    bank: TableBank | None = None,
    bank_tables: frozenset[bytes] = frozenset(),
    extra: Mapping[Section, bytes] | None = None,
    transposed: bool = False,
    tile_encoder: TileEncoder = encode_tile,
) -> bytes:
    """Code a matrix of symbols.

    Args:
        symbols: [columns, chunks, 16].
        classes: class of each column, below len(tables).
        tables: for each class one table, or one for each of the 16 lanes (`choose_tables`).
        rows: m, the rows that are not padding; 16 (chunks - 1) < m <= 16 chunks.
        profile: tile size.
        bank: where tables named in `bank_tables` are kept instead of in these bytes.
        bank_tables: keys of the tables that belong in the bank.
        extra: further sections.
        transposed: the checkpoint holds the transpose of this matrix.
        tile_encoder: kernel.
    """
    columns, chunks, _ = symbols.shape
    if columns * chunks * rans.LANES > MAX_SYMBOLS:
        raise BitstreamError(
            f"{columns} columns of {chunks} chunks exceed the {MAX_SYMBOLS} symbols of one stream"
        )
    wide = [row if len(row) == rans.LANES else row * rans.LANES for row in tables]
    distinct = TableBank([t for row in wide for t in row])
    distinct = TableBank(list({t.key: t for t in distinct.tables}.values()))
    choice = np.array([[distinct.place(t) for t in row] for row in wide], dtype=np.int64)
    encoding = EncodingTables(distinct.tables, choice)
    symbols, patches = _clip(symbols, classes, encoding)

    tile_chunks, tile_columns = tile_shape(chunks, columns, profile)
    index, payload, total = [], [], 0
    for column, chunk in _tile_origins(columns, chunks, tile_columns, tile_chunks):
        part = np.s_[column : column + tile_columns, chunk : chunk + tile_chunks]
        words, states = tile_encoder(
            np.ascontiguousarray(symbols[part]), classes[part[0]], encoding
        )
        data = words.astype("<u2").tobytes()
        index.append(_TILE.pack(len(words), crc32c.crc32c(data), *states.tolist()))
        payload.append(data)
        total += len(words)

    own, map_bytes = _table_sections(tables, bank, bank_tables)
    sections: dict[int, bytes] = {Section.TABLES: own, Section.TABLE_MAP: map_bytes}
    if len(tables) > 1:
        sections[Section.CLASSES] = rice.encode(classes.astype(np.int64))
    sections[Section.INDEX] = b"".join(index)
    if patches:
        sections[Section.PATCHES] = patches
    sections.update(extra or {})
    head = _HEAD.pack(
        MAGIC, MAJOR, MINOR, SCALAR_PROFILE, rans.LANES, rows, columns, tile_chunks, tile_columns,
        len(tables), TRANSPOSED_FLAG * transposed, len(sections), total, 0,
    )  # fmt: skip
    table = b"".join(_SECTION.pack(kind, 0, len(data)) for kind, data in sections.items())
    front = head + table + b"".join(sections.values())
    front += struct.pack("<I", crc32c.crc32c(front))
    body = front + b"".join(payload)
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def _clip(
    symbols: NDArray[np.int16], classes: NDArray[np.uint8], tables: EncodingTables
) -> tuple[NDArray[np.int16], bytes]:
    """Replace symbols that their table lacks by its mode, and list them as patches."""
    codable = np.zeros((len(tables.tables), 2**16), dtype=bool)
    for row, table in zip(codable, tables.tables, strict=True):
        start = table.first + 2**15
        row[start : start + len(table)] = table.frequencies > 0
    modes = np.array([table.mode for table in tables.tables], dtype=np.int16)
    symbols = symbols.copy()
    where, values = [], []
    for column in range(len(symbols)):  # a column at a time keeps the temporaries small
        choice = tables.choice[classes[column]]
        lost = ~codable[choice[None, :], symbols[column].astype(np.int64) + 2**15]
        if lost.any():
            flat = np.flatnonzero(lost)
            where.append(flat + column * lost.size)
            values.append(symbols[column].reshape(-1)[flat])
            symbols[column][lost] = modes[np.broadcast_to(choice, lost.shape)[lost]]
    if not where:
        return symbols, b""
    places = np.concatenate(where).astype("<u4").tobytes()
    return symbols, places + np.concatenate(values).astype("<i4").tobytes()


def _table_sections(
    tables: list[list[FrequencyTable]], bank: TableBank | None, bank_tables: frozenset[bytes]
) -> tuple[bytes, bytes]:
    own = TableBank()
    places = []
    for row in tables:
        for table in row:
            if bank is not None and table.key in bank_tables:
                places.append(BANK_BIT | bank.place(table))
            else:
                places.append(own.place(table))
    return (
        struct.pack("<H", len(own.tables)) + to_bytes(own.tables),
        np.array(places, dtype="<u2").tobytes(),
    )


def _tile_origins(
    columns: int, chunks: int, tile_columns: int, tile_chunks: int
) -> list[tuple[int, int]]:
    return [
        (column, chunk)
        for column in range(0, columns, tile_columns)
        for chunk in range(0, chunks, tile_chunks)
    ]


class Bitstream:
    """A parsed and checked stream; nothing is decoded until asked for.

    Args:
        data: the bytes.
        bank: tables shared by the file, if it has any.

    Raises:
        BitstreamError: data is not a valid stream of a version this reader knows.
    """

    def __init__(self, data: bytes | memoryview, bank: TableBank | None = None) -> None:
        view = memoryview(data).cast("B")
        if len(view) < _HEAD.size + 12:
            raise BitstreamError(f"stream has {len(view)} bytes, wanted at least {_HEAD.size + 12}")
        (
            magic, major, minor, profile, lanes, self.rows, self.columns, self.tile_chunks,
            self.tile_columns, self.classes_count, flags, section_count, self.words, reserved,
        ) = _HEAD.unpack_from(view)  # fmt: skip
        if magic != MAGIC:
            raise BitstreamError(f"stream begins with {magic!r}, wanted {MAGIC!r}")
        if major != MAJOR:
            raise BitstreamError(
                f"stream has version {major}.{minor}, this nwc reads {MAJOR}.x: update nwc"
            )
        if profile != SCALAR_PROFILE or lanes != rans.LANES or flags & ~TRANSPOSED_FLAG or reserved:
            raise BitstreamError(
                f"stream has profile {profile}, {lanes} lanes, flags {flags:#x}; this nwc reads "
                f"profile {SCALAR_PROFILE} with {rans.LANES} lanes: update nwc"
            )
        self.transposed = bool(flags & TRANSPOSED_FLAG)
        self.view = view
        self.sections = self._read_sections(section_count)
        self._check_shape()
        self.chunks = -(-self.rows // rans.LANES)
        self.tiles = self._read_index()
        self.classes = self._read_classes()
        self.tables = self._read_tables(bank)
        self.patches = self._read_patches()

    def _read_sections(self, count: int) -> dict[int, memoryview]:
        if count > MAX_SECTIONS:
            raise BitstreamError(f"stream has {count} sections, wanted at most {MAX_SECTIONS}")
        end = _HEAD.size + count * _SECTION.size
        payload_bytes = 2 * self.words
        front = len(self.view) - 8 - payload_bytes - 4
        if front < end:
            raise BitstreamError(
                f"stream of {len(self.view)} bytes cannot hold {count} sections and "
                f"{payload_bytes} payload bytes"
            )
        sections: dict[int, memoryview] = {}
        for i in range(count):
            kind, reserved, length = _SECTION.unpack_from(self.view, _HEAD.size + i * 8)
            if reserved or kind in sections or end + length > front:
                raise BitstreamError(
                    f"section {i} (kind {kind:#06x}, {length} bytes) is repeated or ends at byte "
                    f"{end + length} of {front}"
                )
            if kind & CRITICAL_BIT and kind not in _KINDS:
                raise BitstreamError(f"section kind {kind:#06x} is unknown: update nwc")
            sections[kind] = self.view[end : end + length]
            end += length
        if end != front:
            raise BitstreamError(f"sections end at byte {end}, wanted {front}")
        (stored,) = struct.unpack_from("<I", self.view, front)
        if stored != crc32c.crc32c(self.view[:front]):
            raise BitstreamError("checksum of the head does not match: the stream is damaged")
        self._payload = np.frombuffer(self.view[front + 4 : front + 4 + payload_bytes], "<u2")
        return sections

    def _check_shape(self) -> None:
        chunks = -(-self.rows // rans.LANES)
        if not (self.rows and self.columns) or chunks * rans.LANES * self.columns > MAX_SYMBOLS:
            raise BitstreamError(
                f"stream is {self.rows} x {self.columns}, wanted at least 1 x 1 and at most "
                f"{MAX_SYMBOLS} symbols"
            )
        tile_symbols = self.tile_chunks * self.tile_columns * rans.LANES
        if (
            not 0 < self.tile_chunks <= chunks
            or not 0 < self.tile_columns <= self.columns
            or tile_symbols > MAX_TILE_SYMBOLS
        ):
            raise BitstreamError(
                f"tile of {self.tile_chunks} chunks x {self.tile_columns} columns does not fit "
                f"{chunks} x {self.columns} or the limit of {MAX_TILE_SYMBOLS} symbols"
            )
        if not 1 <= self.classes_count <= 16:
            raise BitstreamError(f"stream has {self.classes_count} classes, wanted 1 to 16")

    def section(self, kind: Section) -> memoryview:
        """Bytes of a section.

        Raises:
            BitstreamError: the stream has none of this kind.
        """
        if kind not in self.sections:
            raise BitstreamError(f"stream has no section {kind.name}")
        return self.sections[kind]

    def _read_index(self) -> list[Tile]:
        data = self.section(Section.INDEX)
        # Count before listing: a forged shape must not cost more than its bytes.
        count = -(-self.columns // self.tile_columns) * -(-self.chunks // self.tile_chunks)
        if len(data) != count * _TILE.size:
            raise BitstreamError(
                f"index has {len(data)} bytes, wanted {count} tiles of {_TILE.size}"
            )
        entries = np.frombuffer(data, dtype="<u4").reshape(count, -1)
        ends = np.cumsum(entries[:, 0], dtype=np.uint64)
        if int(ends[-1]) != self.words:
            raise BitstreamError(f"tiles have {int(ends[-1])} words, the head says {self.words}")
        origins = _tile_origins(self.columns, self.chunks, self.tile_columns, self.tile_chunks)
        return [
            Tile(
                column=column,
                columns=min(self.tile_columns, self.columns - column),
                chunk=chunk,
                chunks=min(self.tile_chunks, self.chunks - chunk),
                word=int(end) - int(entry[0]),
                words=int(entry[0]),
                checksum=int(entry[1]),
                states=entry[2:].astype(np.uint32),
            )
            for (column, chunk), entry, end in zip(origins, entries, ends, strict=True)
        ]

    def _read_classes(self) -> NDArray[np.uint8]:
        if self.classes_count == 1:
            return np.zeros(self.columns, dtype=np.uint8)
        data = self.section(Section.CLASSES)
        classes, used = rice.decode(data, self.columns)
        if used != len(data) or int(classes.max()) >= self.classes_count:
            raise BitstreamError(
                f"classes take {used} of {len(data)} bytes and reach {int(classes.max())}, "
                f"wanted all bytes and values below {self.classes_count}"
            )
        return classes.astype(np.uint8)

    def _read_tables(self, bank: TableBank | None) -> DecodingTables:
        data = self.section(Section.TABLES)
        if len(data) < 2:
            raise BitstreamError(f"section TABLES has {len(data)} bytes, wanted at least 2")
        own = from_bytes(data[2:], int.from_bytes(data[:2], "little"))
        raw = self.section(Section.TABLE_MAP)
        if len(raw) not in (2 * self.classes_count, 2 * self.classes_count * rans.LANES):
            raise BitstreamError(
                f"table map has {len(raw)} bytes for {self.classes_count} classes, wanted "
                f"{2 * self.classes_count} or {2 * self.classes_count * rans.LANES}"
            )
        places = np.frombuffer(raw, dtype="<u2")
        distinct: dict[int, int] = {}
        tables = []
        for place in places.tolist():
            if place in distinct:
                continue
            source, at = (own, place) if place < BANK_BIT else (bank, place - BANK_BIT)
            known = source.tables if isinstance(source, TableBank) else source or []
            if at >= len(known):
                where = "own" if place < BANK_BIT else "shared"
                raise BitstreamError(f"{where} table {at} is missing, there are {len(known)}")
            distinct[place] = len(tables)
            tables.append(known[at])
        choice = np.array([distinct[p] for p in places.tolist()], dtype=np.int64)
        choice = np.broadcast_to(choice.reshape(self.classes_count, -1), (self.classes_count, 16))
        return DecodingTables(tables, np.ascontiguousarray(choice))

    def _read_patches(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        data = self.sections.get(Section.PATCHES, self.view[:0])
        if len(data) % 8:
            raise BitstreamError(f"patch list has {len(data)} bytes, wanted a multiple of 8")
        count = len(data) // 8
        places = np.frombuffer(data, dtype="<u4", count=count).astype(np.int64)
        values = np.frombuffer(data, dtype="<i4", offset=4 * count).astype(np.int64)
        limit = self.columns * self.chunks * rans.LANES
        if count and (int(np.diff(places).min(initial=1)) <= 0 or int(places[-1]) >= limit):
            raise BitstreamError(f"patches are not in ascending order below {limit}")
        if count and int(np.abs(values).max()) >= 2**15:
            raise BitstreamError("a patch holds a value that is not a 16-bit symbol")
        return places, values

    def payload_words(self, tile: Tile) -> NDArray[np.uint16]:
        """The words of a tile, unverified."""
        return self._payload[tile.word : tile.word + tile.words]

    def tile(self, i: int, decoder: TileDecoder = decode_tile) -> NDArray[np.int16]:
        """Symbols [columns, chunks, 16] of tile i, its checksum verified first.

        Raises:
            BitstreamError: the tile is damaged or does not exist.
        """
        if not 0 <= i < len(self.tiles):
            raise BitstreamError(f"tile {i} does not exist, there are {len(self.tiles)}")
        tile = self.tiles[i]
        words = self.payload_words(tile)
        if crc32c.crc32c(words) != tile.checksum:
            raise BitstreamError(f"tile {i}: checksum of its {tile.words} words does not match")
        classes = self.classes[tile.column : tile.column + tile.columns]
        try:
            symbols = decoder(words, tile.states, classes, tile.chunks, self.tables)
        except BitstreamError as error:
            raise BitstreamError(f"tile {i}: {error}") from error
        self._patch(symbols, tile)
        return symbols

    def _patch(self, symbols: NDArray[np.int16], tile: Tile) -> None:
        places, values = self.patches
        height = self.chunks * rans.LANES
        low = np.searchsorted(places, tile.column * height)
        high = np.searchsorted(places, (tile.column + tile.columns) * height)
        column, row = np.divmod(places[low:high], height)
        chunk, lane = np.divmod(row, rans.LANES)
        inside = (chunk >= tile.chunk) & (chunk < tile.chunk + tile.chunks)
        at = (column[inside] - tile.column, chunk[inside] - tile.chunk, lane[inside])
        symbols[at] = values[low:high][inside]

    def check_tensor(self) -> None:
        """Raise BitstreamError unless the hash of the whole stream matches."""
        if xxhash.xxh3_64_intdigest(self.view[:-8]) != int.from_bytes(self.view[-8:], "little"):
            raise BitstreamError("checksum of the tensor does not match: the stream is damaged")

    def symbols(
        self, decoder: TileDecoder = decode_tile, executor: Executor | None = None
    ) -> NDArray[np.int16]:
        """All symbols [columns, chunks, 16]; tiles decode in the executor's threads if given.

        Raises:
            BitstreamError: the stream is damaged anywhere.
        """
        self.check_tensor()
        out = np.empty((self.columns, self.chunks, rans.LANES), dtype=np.int16)

        def place(i: int) -> None:
            tile = self.tiles[i]
            part = np.s_[
                tile.column : tile.column + tile.columns, tile.chunk : tile.chunk + tile.chunks
            ]
            out[part] = self.tile(i, decoder)

        for _ in (map if executor is None else executor.map)(place, range(len(self.tiles))):
            pass
        return out
