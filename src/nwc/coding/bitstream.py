"""NWC-RANS v1: one matrix of integer symbols, and whatever travels with it, as bytes.

Symbols form an array [columns, chunks, 16]. They are cut into tiles, strips of `tile_columns`
columns and `tile_chunks` chunks; each tile codes its columns one after the other, each column's
chunks downwards, 16 lanes to a chunk. Tiles decode independently.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import crc32c
import numpy as np

from nwc.coding import rice
from nwc.coding.container import MAX_SYMBOLS, Head, Section, pack, unpack
from nwc.coding.rans import LANES
from nwc.coding.tables import FrequencyTable, TableBank, from_bytes, to_bytes
from nwc.coding.tiling import (
    PROFILES,
    DecodingTables,
    EncodingTables,
    Profile,
    Tile,
    TileDecoder,
    TileEncoder,
    decode_tile,
    encode_tile,
    tile_origins,
    tile_shape,
)
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANK_BIT = 0x8000
"""Set in a place of the table map that counts tables of the file's bank, not the stream's own."""

_TILE = struct.Struct("<II16I")


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
    if columns * chunks * LANES > MAX_SYMBOLS:
        raise BitstreamError(
            f"{columns} columns of {chunks} chunks exceed the {MAX_SYMBOLS} symbols of one stream"
        )
    distinct = TableBank()
    places = [[distinct.place(table) for table in row] for row in tables]
    choice = [row if len(row) == LANES else row * LANES for row in places]
    encoding = EncodingTables(distinct.tables, np.array(choice, dtype=np.int64))
    symbols, patches = _clip(symbols, classes, encoding)

    tile_chunks, tile_columns = tile_shape(chunks, columns, profile)
    index, payload, total = [], [], 0
    for column, chunk in tile_origins(chunks, columns, tile_chunks, tile_columns):
        part = np.s_[column : column + tile_columns, chunk : chunk + tile_chunks]
        words, states = tile_encoder(
            np.ascontiguousarray(symbols[part]), classes[part[0]], encoding
        )
        data = words.astype("<u2").tobytes()
        index.append(_TILE.pack(len(words), crc32c.crc32c(data), *states.tolist()))
        payload.append(data)
        total += len(words)

    own, table_map = _table_sections(tables, bank, bank_tables)
    sections: dict[Section, bytes] = {Section.TABLES: own, Section.TABLE_MAP: table_map}
    if len(tables) > 1:
        sections[Section.CLASSES] = rice.encode(classes.astype(np.int64))
    sections[Section.INDEX] = b"".join(index)
    if patches:
        sections[Section.PATCHES] = patches
    sections.update(extra or {})
    head = Head(rows, columns, tile_chunks, tile_columns, len(tables), transposed, total)
    return pack(head, sections, payload)


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
        >>> table = FrequencyTable(0, np.array([4096]))
        >>> old, new = TableBank(), TableBank()
        >>> data = encode(np.zeros((1, 1, 16), np.int16), np.zeros(1, np.uint8), [[table]],
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
        self.tiles = self._read_index()
        self.classes = self._read_classes()
        self.tables = self._read_tables(bank or TableBank())
        self.patches = self._read_patches()

    def _read_index(self) -> list[Tile]:
        head = self.head
        data = self.container.section(Section.INDEX)
        # Count before listing: a forged shape must not cost more than its bytes.
        count = -(-head.columns // head.tile_columns) * -(-head.chunks // head.tile_chunks)
        if len(data) != count * _TILE.size:
            raise BitstreamError(
                f"index has {len(data)} bytes, wanted {count} tiles of {_TILE.size}"
            )
        entries = np.frombuffer(data, dtype="<u4").reshape(count, -1)
        ends = np.cumsum(entries[:, 0], dtype=np.uint64)
        if int(ends[-1]) != head.words:
            raise BitstreamError(f"tiles have {int(ends[-1])} words, the head says {head.words}")
        origins = tile_origins(head.chunks, head.columns, head.tile_chunks, head.tile_columns)
        return [
            Tile(
                column=column,
                columns=min(head.tile_columns, head.columns - column),
                chunk=chunk,
                chunks=min(head.tile_chunks, head.chunks - chunk),
                word=int(end) - int(entry[0]),
                words=int(entry[0]),
                checksum=int(entry[1]),
                states=entry[2:].astype(np.uint32),
            )
            for (column, chunk), entry, end in zip(origins, entries, ends, strict=True)
        ]

    def _read_classes(self) -> NDArray[np.uint8]:
        columns, count = self.head.columns, self.head.classes
        if count == 1:
            return np.zeros(columns, dtype=np.uint8)
        data = self.container.section(Section.CLASSES)
        classes, used = rice.decode(data, columns)
        if used != len(data) or int(classes.max()) >= count:
            raise BitstreamError(
                f"classes take {used} of {len(data)} bytes and reach {int(classes.max())}, "
                f"wanted all bytes and values below {count}"
            )
        return classes.astype(np.uint8)

    def _read_tables(self, bank: TableBank) -> DecodingTables:
        data = self.container.section(Section.TABLES)
        if len(data) < 2:
            raise BitstreamError(f"section TABLES has {len(data)} bytes, wanted at least 2")
        count, known = self.head.classes, int.from_bytes(data[:2], "little")
        if known > count * LANES:
            raise BitstreamError(f"stream has {known} tables, its {count} classes use fewer")
        own = from_bytes(data[2:], known)
        raw = self.container.section(Section.TABLE_MAP)
        if len(raw) not in (2 * count, 2 * count * LANES):
            raise BitstreamError(
                f"table map has {len(raw)} bytes for {count} classes, wanted {2 * count} or "
                f"{2 * count * LANES}"
            )
        places = np.frombuffer(raw, dtype="<u2").tolist()
        tables = {}
        for place in dict.fromkeys(places):
            where, there = ("own", own) if place < BANK_BIT else ("shared", bank.tables)
            at = place & ~BANK_BIT
            if at >= len(there):
                raise BitstreamError(f"{where} table {at} is missing, there are {len(there)}")
            tables[place] = there[at]
        order = {place: i for i, place in enumerate(tables)}
        choice = np.array([order[place] for place in places], dtype=np.int64).reshape(count, -1)
        wide = np.ascontiguousarray(np.broadcast_to(choice, (count, LANES)))
        return DecodingTables(list(tables.values()), wide)

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

    def words(self, tile: Tile) -> NDArray[np.uint16]:
        """The words of a tile, unverified."""
        return self.container.payload[tile.word : tile.word + tile.words]

    def tile(self, i: int, decoder: TileDecoder = decode_tile) -> NDArray[np.int16]:
        """Symbols [columns, chunks, 16] of tile i, its checksum verified first.

        Raises:
            BitstreamError: the tile is damaged or does not exist.
        """
        if not 0 <= i < len(self.tiles):
            raise BitstreamError(f"tile {i} does not exist, there are {len(self.tiles)}")
        tile = self.tiles[i]
        words = self.words(tile)
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
        height = self.head.chunks * LANES
        low = np.searchsorted(places, tile.column * height)
        high = np.searchsorted(places, (tile.column + tile.columns) * height)
        column, row = np.divmod(places[low:high], height)
        chunk, lane = np.divmod(row, LANES)
        inside = (chunk >= tile.chunk) & (chunk < tile.chunk + tile.chunks)
        at = (column[inside] - tile.column, chunk[inside] - tile.chunk, lane[inside])
        symbols[at] = values[low:high][inside]

    def symbols(
        self, decoder: TileDecoder = decode_tile, executor: Executor | None = None
    ) -> NDArray[np.int16]:
        """All symbols [columns, chunks, 16]; tiles decode in the executor's threads if given.

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
