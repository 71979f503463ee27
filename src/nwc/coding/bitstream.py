"""NWC-RANS v1: one matrix of integers, and whatever travels with it, as bytes.

Integers form an array [columns, chunks, 16]. Scalar streams code them as they are, trellis
streams by their place among those of their parity (`coding.trellis`). They are cut into tiles,
strips of `tile_columns` columns and `tile_chunks` chunks; each tile codes its columns one after
the other, each column's chunks downwards, 16 lanes to a chunk. Tiles decode independently.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import crc32c
import numpy as np

from nwc.coding import rice
from nwc.coding.census import Tables
from nwc.coding.container import MAX_SYMBOLS, Head, Section, pack, unpack
from nwc.coding.rans import LANES
from nwc.coding.tables import TableBank, from_bytes, to_bytes
from nwc.coding.tiling import (
    PROFILES,
    Classes,
    DecodingTables,
    EncodingTables,
    Profile,
    Tile,
    TileDecoder,
    TileEncoder,
    decode_tile,
    encode_tile,
    split_parity,
    tile_origins,
    tile_shape,
)
from nwc.coding.trellis import TRELLISES, Trellis
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANK_BIT = 0x8000
"""Set in a place of the table map that counts tables of the file's bank, not the stream's own."""

_TILE = struct.Struct("<II16I")


def encode(
    integers: NDArray[np.int16],
    classes: Classes,
    tables: Tables,
    *,
    rows: int,
    trellis: Trellis | None = None,
    profile: Profile = PROFILES["balanced"],
    bank: TableBank | None = None,
    bank_tables: frozenset[bytes] = frozenset(),
    extra: Mapping[Section, bytes] | None = None,
    transposed: bool = False,
    tile_encoder: TileEncoder = encode_tile,
) -> bytes:
    """Code a matrix of integers.

    Args:
        integers: [columns, chunks, 16].
        classes: of columns and rows; sums below len(tables).
        tables: for each class one table, or one for each of the 16 lanes; with a trellis one for
            each parity of those (`census.choose_tables`).
        rows: m, the rows that are not padding; 16 (chunks - 1) < m <= 16 chunks.
        trellis: that the integers follow, from state 0 at the start of every lane of a tile.
        profile: tile size.
        bank: where tables named in `bank_tables` are kept instead of in these bytes.
        bank_tables: keys of the tables that belong in the bank.
        extra: further sections.
        transposed: the checkpoint holds the transpose of this matrix.
        tile_encoder: kernel.
    """
    columns, chunks, _ = integers.shape
    if columns * chunks * LANES > MAX_SYMBOLS:
        raise BitstreamError(
            f"{columns} columns of {chunks} chunks exceed the {MAX_SYMBOLS} symbols of one stream"
        )
    distinct = TableBank()
    places = [[distinct.place(table) for table in row] for row in tables]
    encoding = EncodingTables(distinct.tables, _choice(places, trellis), trellis)
    integers, patches = _clip(integers, classes, encoding)

    tile_chunks, tile_columns = tile_shape(chunks, columns, profile)
    index, payload, total = [], [], 0
    for column, chunk in tile_origins(chunks, columns, tile_chunks, tile_columns):
        part = np.s_[column : column + tile_columns, chunk : chunk + tile_chunks]
        words, states = tile_encoder(
            np.ascontiguousarray(integers[part]), classes.part(*part), encoding
        )
        data = words.astype("<u2").tobytes()
        index.append(_TILE.pack(len(words), crc32c.crc32c(data), *states.tolist()))
        payload.append(data)
        total += len(words)

    own, table_map = _table_sections(tables, bank, bank_tables)
    sections: dict[Section, bytes] = {Section.TABLES: own, Section.TABLE_MAP: table_map}
    if len(tables) > 1:
        sections[Section.CLASSES] = rice.encode(classes.columns.astype(np.int64))
    if classes.rows.any():
        sections[Section.ROW_CLASSES] = rice.encode(classes.rows.reshape(-1).astype(np.int64))
    sections[Section.INDEX] = b"".join(index)
    if patches:
        sections[Section.PATCHES] = patches
    sections.update(extra or {})
    machine = 0 if trellis is None else trellis.states
    head = Head(rows, columns, tile_chunks, tile_columns, len(tables), transposed, total, machine)
    return pack(head, sections, payload)


def _choice(places: list[list[int]], trellis: Trellis | None) -> NDArray[np.int64]:
    """Tables by class and lane, and by parity if there is a trellis."""
    parities = 1 if trellis is None else 2
    each = np.array(places, dtype=np.int64).reshape(len(places), -1, parities)
    wide = np.ascontiguousarray(np.broadcast_to(each, (len(places), LANES, parities)))
    return wide[..., 0] if trellis is None else wide


def _clip(
    integers: NDArray[np.int16], classes: Classes, tables: EncodingTables
) -> tuple[NDArray[np.int16], bytes]:
    """Replace symbols that their table lacks by a frequent one, and list them as patches.

    In a trellis the stand-in leads to the same state: it is odd if the symbol is.
    """
    trellis = tables.trellis
    codable = np.zeros((len(tables.tables), 2**16), dtype=bool)
    stand_ins = np.zeros((len(tables.tables), 2), dtype=np.int16)
    for i, table in enumerate(tables.tables):
        start = table.first + 2**15
        codable[i, start : start + len(table)] = table.frequencies > 0
        stand_ins[i] = [table.mode] * 2 if trellis is None else table.modes
    integers = integers.copy()
    where, values = [], []
    for column in range(len(integers)):  # a column at a time keeps the temporaries small
        symbols, parities = split_parity(integers[column], trellis)
        choice = tables.choice[classes.columns[column] + classes.rows, np.arange(LANES)]
        if trellis is not None:
            choice = np.take_along_axis(choice, parities[..., None].astype(np.int64), 2)[..., 0]
        lost = ~codable[choice, symbols.astype(np.int64) + 2**15]
        if not lost.any():
            continue
        flat = np.flatnonzero(lost)
        where.append(flat + column * lost.size)
        values.append(integers[column].reshape(-1)[flat])
        stand_in = stand_ins[choice[lost], symbols[lost] & 1]
        if trellis is not None:
            if not codable[choice[lost], stand_in.astype(np.int64) + 2**15].all():
                raise BitstreamError("a table has no stand-in for a symbol that it lacks")
            stand_in = 2 * stand_in + parities[lost]
        integers[column][lost] = stand_in
    if not where:
        return integers, b""
    places = np.concatenate(where).astype("<u4").tobytes()
    return integers, places + np.concatenate(values).astype("<i4").tobytes()


def _table_sections(
    tables: Tables, bank: TableBank | None, bank_tables: frozenset[bytes]
) -> tuple[bytes, bytes]:
    own = TableBank()
    places = []
    for row in tables:
        for table in row:
            if bank is not None and table.key in bank_tables and bank.takes(table):
                places.append(BANK_BIT | bank.place(table))
            else:
                places.append(own.place(table))
    return (
        struct.pack("<H", len(own.tables)) + to_bytes(own.tables),
        np.array(places, dtype="<u2").tobytes(),
    )


def rebank(data: bytes, old: TableBank, new: TableBank) -> bytes:
    """The same stream with its shared tables in another bank.

    Streams that are coded apart, each with a bank of its own, join one file this way.

    Args:
        data: a stream.
        old: the bank it was coded with.
        new: where its shared tables are put; those that find no room become the stream's own.

    Example:
        >>> from nwc.coding.tables import FrequencyTable
        >>> table = FrequencyTable(0, np.array([4096]))
        >>> old, new = TableBank(), TableBank()
        >>> classes = Classes.by_column(np.zeros(1, np.uint8), 1)
        >>> data = encode(np.zeros((1, 1, 16), np.int16), classes, [[table]],
        ...               rows=16, bank=old, bank_tables=frozenset({table.key}))
        >>> len(rebank(data, old, new)) == len(data), len(new.tables)
        (True, 1)
    """
    container = unpack(data)
    stored = container.section(Section.TABLES)
    own = from_bytes(stored[2:], int.from_bytes(stored[:2], "little"))
    places = np.frombuffer(container.section(Section.TABLE_MAP), dtype="<u2").tolist()
    tables = [(old.tables if p & BANK_BIT else own)[p & ~BANK_BIT] for p in places]
    shared = frozenset(t.key for t, p in zip(tables, places, strict=True) if p & BANK_BIT)
    sections = {Section(kind): bytes(section) for kind, section in container.sections.items()}
    sections[Section.TABLES], sections[Section.TABLE_MAP] = _table_sections([tables], new, shared)
    return pack(container.head, sections, [container.payload.tobytes()])


class Index(NamedTuple):
    """The index of a stream as it is stored.

    Args:
        entries: [tiles, 18]: number of words, their CRC32C, 16 states.
        starts: [tiles] first word of each.
    """

    entries: NDArray[np.uint32]
    starts: NDArray[np.int64]


class Bitstream:
    """A parsed and checked stream; nothing is decoded until asked for.

    Args:
        data: the bytes.
        bank: tables shared by the file, if it has any.

    Raises:
        BitstreamError: data is not a valid stream of a version this reader knows.
    """

    def __init__(self, data: bytes | memoryview, bank: TableBank | None = None) -> None:
        self.container = unpack(data)
        self.head = self.container.head
        self.index = self._read_index()
        self.classes = self._read_classes()
        self.tables = self._read_tables(bank or TableBank())
        self.patches = self._read_patches()

    def _read_index(self) -> Index:
        head = self.head
        data = self.container.section(Section.INDEX)
        # Count before listing: a forged shape must not cost more than its bytes.
        count = -(-head.columns // head.tile_columns) * -(-head.chunks // head.tile_chunks)
        if len(data) != count * _TILE.size:
            raise BitstreamError(
                f"index has {len(data)} bytes, wanted {count} tiles of {_TILE.size}"
            )
        entries = np.frombuffer(data, dtype="<u4").reshape(count, -1)
        ends = np.cumsum(entries[:, 0], dtype=np.int64)
        if int(ends[-1]) != head.words:
            raise BitstreamError(f"tiles have {int(ends[-1])} words, the head says {head.words}")
        return Index(entries, ends - entries[:, 0])

    @cached_property
    def tiles(self) -> list[Tile]:
        """Places of all tiles, in the order of the file."""
        head = self.head
        origins = tile_origins(head.chunks, head.columns, head.tile_chunks, head.tile_columns)
        return [
            Tile(
                column=column,
                columns=min(head.tile_columns, head.columns - column),
                chunk=chunk,
                chunks=min(head.tile_chunks, head.chunks - chunk),
                word=start,
                words=int(entry[0]),
                checksum=int(entry[1]),
                states=entry[2:].astype(np.uint32),
            )
            for (column, chunk), entry, start in zip(
                origins, self.index.entries, self.index.starts.tolist(), strict=True
            )
        ]

    def _read_classes(self) -> Classes:
        head = self.head
        columns = self._rice(Section.CLASSES, head.columns) if head.classes > 1 else None
        if columns is None:
            columns = np.zeros(head.columns, dtype=np.uint8)
        rows = np.zeros(head.chunks * LANES, dtype=np.uint8)
        if Section.ROW_CLASSES in self.container.sections:
            rows = self._rice(Section.ROW_CLASSES, head.chunks * LANES)
        if int(columns.max()) + int(rows.max()) >= head.classes:
            raise BitstreamError(
                f"classes of columns reach {columns.max()} and of rows {rows.max()}, wanted a sum "
                f"below {head.classes}"
            )
        return Classes(columns, rows.reshape(head.chunks, LANES))

    def _rice(self, kind: Section, count: int) -> NDArray[np.uint8]:
        data = self.container.section(kind)
        classes, used = rice.decode(data, count)
        if used != len(data) or int(classes.max()) >= self.head.classes:
            raise BitstreamError(
                f"section {kind.name} takes {used} of {len(data)} bytes and reaches "
                f"{int(classes.max())}, wanted all bytes and values below {self.head.classes}"
            )
        return classes.astype(np.uint8)

    def _read_tables(self, bank: TableBank) -> DecodingTables:
        data = self.container.section(Section.TABLES)
        if len(data) < 2:
            raise BitstreamError(f"section TABLES has {len(data)} bytes, wanted at least 2")
        trellis = TRELLISES.get(self.head.trellis)
        count = self.head.classes * (1 if trellis is None else 2)
        known = int.from_bytes(data[:2], "little")
        if known > count * LANES:
            raise BitstreamError(f"stream has {known} tables, its {count} classes use fewer")
        own = from_bytes(data[2:], known)
        raw = self.container.section(Section.TABLE_MAP)
        if len(raw) not in (2 * count, 2 * count * LANES):
            raise BitstreamError(
                f"table map has {len(raw)} bytes, wanted {2 * count} or {2 * count * LANES}"
            )
        places = np.frombuffer(raw, dtype="<u2").tolist()
        tables = {}
        for place in dict.fromkeys(places):
            where, there = ("own", own) if place < BANK_BIT else ("shared", bank.tables)
            at = place & ~BANK_BIT
            if at >= len(there):
                raise BitstreamError(f"{where} table {at} is missing, there are {len(there)}")
            tables[place] = table = there[at]
            if trellis is not None and not -(2**14) <= table.first <= table.last < 2**14:
                raise BitstreamError(
                    f"{where} table {at} reaches from {table.first} to {table.last}, which a "
                    "trellis doubles: wanted 15-bit symbols"
                )
        order = {place: i for i, place in enumerate(tables)}
        rows = np.array([order[place] for place in places]).reshape(self.head.classes, -1)
        return DecodingTables(list(tables.values()), _choice(rows.tolist(), trellis), trellis)

    def _read_patches(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        data = self.container.sections.get(Section.PATCHES, memoryview(b""))
        if len(data) % 8:
            raise BitstreamError(f"patch list has {len(data)} bytes, wanted a multiple of 8")
        count = len(data) // 8
        places = np.frombuffer(data, dtype="<u4", count=count).astype(np.int64)
        values = np.frombuffer(data, dtype="<i4", offset=4 * count).astype(np.int64)
        limit = self.head.columns * self.head.chunks * LANES
        if count and (int(np.diff(places).min(initial=1)) <= 0 or int(places[-1]) >= limit):
            raise BitstreamError(f"patches are not in ascending order below {limit}")
        if count and not -(2**15) <= int(values.min()) <= int(values.max()) < 2**15:
            raise BitstreamError("a patch holds a value that is not a 16-bit symbol")
        return places, values

    def classes_of(self, tile: Tile) -> Classes:
        """Classes of a tile's columns and rows."""
        columns = slice(tile.column, tile.column + tile.columns)
        return self.classes.part(columns, slice(tile.chunk, tile.chunk + tile.chunks))

    def words(self, tile: Tile) -> NDArray[np.uint16]:
        """The words of a tile, unverified."""
        return self.container.payload[tile.word : tile.word + tile.words]

    def tile(self, i: int, decoder: TileDecoder = decode_tile) -> NDArray[np.int16]:
        """Integers [columns, chunks, 16] of tile i, its checksum verified first.

        Raises:
            BitstreamError: the tile is damaged or does not exist.
        """
        tile, words = self._verified(i)
        try:
            integers = decoder(words, tile.states, self.classes_of(tile), self.tables)
        except BitstreamError as error:
            raise BitstreamError(f"tile {i}: {error}") from error
        self._patch(integers, tile)
        return integers

    def bands(self, width: int) -> list[range]:
        """Numbers of all tiles, up to `width` neighbours of the same rows at a time."""
        strips = -(-self.head.columns // self.head.tile_columns)
        down = len(self.tiles) // strips
        return [
            range(strip * down + row, min(strip + width, strips) * down, down)
            for strip in range(0, strips, width)
            for row in range(down)
        ]

    def _verified(self, i: int) -> tuple[Tile, NDArray[np.uint16]]:
        if not 0 <= i < len(self.tiles):
            raise BitstreamError(f"tile {i} does not exist, there are {len(self.tiles)}")
        tile = self.tiles[i]
        words = self.words(tile)
        if crc32c.crc32c(words) != tile.checksum:
            raise BitstreamError(f"tile {i}: checksum of its {tile.words} words does not match")
        return tile, words

    def _patch(self, integers: NDArray[np.int16], tile: Tile) -> None:
        places, values = self.patches
        if not len(places):
            return
        height = self.head.chunks * LANES
        low = np.searchsorted(places, tile.column * height)
        high = np.searchsorted(places, (tile.column + tile.columns) * height)
        column, row = np.divmod(places[low:high], height)
        chunk, lane = np.divmod(row, LANES)
        inside = (chunk >= tile.chunk) & (chunk < tile.chunk + tile.chunks)
        at = (column[inside] - tile.column, chunk[inside] - tile.chunk, lane[inside])
        integers[at] = values[low:high][inside]

    def symbols(
        self, decoder: TileDecoder = decode_tile, executor: Executor | None = None
    ) -> NDArray[np.int16]:
        """All integers [columns, chunks, 16]; tiles decode in the executor's threads if given.

        Raises:
            BitstreamError: the stream is damaged anywhere.
        """
        self.container.check_hash()
        out = np.empty((self.head.columns, self.head.chunks, LANES), dtype=np.int16)

        def place(i: int) -> None:
            tile = self.tiles[i]
            part = np.s_[
                tile.column : tile.column + tile.columns, tile.chunk : tile.chunk + tile.chunks
            ]
            out[part] = self.tile(i, decoder)

        for _ in (map if executor is None else executor.map)(place, range(len(self.tiles))):
            pass
        return out
