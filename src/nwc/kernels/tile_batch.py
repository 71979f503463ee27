"""Tiles of many matrices in one set of arrays, as the GPU kernels read them.

A GPU wants thousands of tiles at once, so all matrices of a model are decoded by one launch. What
a program has to know of a tile is a row of integers, the *slot*: where its words, classes, tables
and output lie in arrays that hold those of all matrices one after the other.

Tiles of one program run the same number of steps: they are sorted by shape, and every group of
equal shape is filled up with repetitions of its last tile, which write the same values once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.coding import rans
from nwc.coding.bitstream import Bitstream
from nwc.coding.tables import TOTAL, TableBank
from nwc.coding.tiling import Classes, DecodingTables, Tile
from nwc.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT = 4
"""The start of a value table is a multiple of it, so that a place in the table is congruent to the
integer and the path through the trellis can be read off the place."""


class Slot(IntEnum):
    """Fields of a slot."""

    WORD = 0
    """First word of the tile."""
    WORDS = 1
    COLUMNS = 2
    CHUNKS = 3
    ROWS = 4
    """Rows that are written; the others are padding."""
    COLUMN = 5
    """First column, counted over all matrices: its class and its scale."""
    ROW = 6
    """First row, padding included, counted over all matrices: its class and its scale."""
    CHOICE = 7
    """Entry of (class 0, lane 0, parity 0) in `choice`."""
    OUT = 8
    """Where the first weight goes."""
    COLUMN_STRIDE = 9
    ROW_STRIDE = 10
    ON_PARITY = 11
    ON_BIT = 12
    TILE = 13
    """Number of the tile, counted over all matrices; -1 in a repetition."""


class Values(NamedTuple):
    """What integers become, for codecs that treat weights one by one.

    Args:
        first: the integer of the first value, a multiple of 4.
        table: [classes, count] FP32, count a multiple of 4.
    """

    first: int
    table: NDArray[np.float32]


class Coded(NamedTuple):
    """A matrix's tiles, as a parsed stream or a test has them.

    Args:
        words: of all tiles.
        tiles: where each one lies.
        classes: of columns and rows.
        tables: ready to decode with.
        rows: m, without padding.
        tile_columns: columns of a strip.
    """

    words: NDArray[np.uint16]
    tiles: list[Tile]
    classes: Classes
    tables: DecodingTables
    rows: int
    tile_columns: int

    @classmethod
    def of(cls, stream: Bitstream) -> Coded:
        """Those of a stream."""
        head = stream.head
        return cls(
            stream.container.payload,
            stream.tiles,
            stream.classes,
            stream.tables,
            head.rows,
            head.tile_columns,
        )


class Place(NamedTuple):
    """Where a matrix's weights go: row r of column c to start + c column_stride + r row_stride."""

    start: int
    column_stride: int
    row_stride: int


@dataclass(frozen=True)
class Launch:
    """Slots that one kernel decodes.

    Args:
        slots: [slots, fields] int64, see `Slot`.
        states: [slots, 16].
        trellis: whether any stream of them has one.
        row_classes: whether any stream of them has classes of rows.
    """

    slots: NDArray[np.int64]
    states: NDArray[np.uint32]
    trellis: bool
    row_classes: bool


@dataclass(frozen=True)
class TileBatch:
    """All that decoding needs, as arrays of the host.

    Args:
        launches: one for each kind of stream.
        words: of all streams, one after the other.
        column_classes: of all streams.
        row_classes: of all streams, padding included.
        choice: [entries] int64: table << 32 | start, for each class, lane and parity of each
            stream; start + (2 or 1) symbol is the place of the value, or the integer itself.
        packed: `rans.lookup` of all tables.
        values: value tables of all streams.
        tiles: tiles of each stream.
    """

    launches: list[Launch]
    words: list[NDArray[np.uint16]]
    column_classes: NDArray[np.uint8]
    row_classes: NDArray[np.uint8]
    choice: NDArray[np.int64]
    packed: NDArray[np.uint32]
    values: NDArray[np.float32]
    tiles: list[int]


def batch(
    matrices: Sequence[Coded],
    places: Sequence[Place],
    values: Sequence[Values] | None = None,
    *,
    tiles_per_program: int,
    padding: bool = False,
    spare: int | None = None,
) -> TileBatch:
    """Describe the tiles of matrices.

    Args:
        matrices: their tiles.
        places: where each one's weights go.
        values: each one's; None to decode to integers.
        tiles_per_program: slots are a multiple of it.
        padding: whether padding rows are written.
        spare: None to write every column of a matrix. Otherwise the columns of a strip of tiles
            share one, the column stride lies between strips, and repetitions of a tile, which must
            not add to it, write from here on.

    Raises:
        ConfigError: too many tables or values for one batch.
    """
    bank, choice = TableBank(), []
    groups: dict[tuple[bool, bool], list[tuple[NDArray[np.int64], NDArray[np.uint32]]]] = {}
    word = column = row = entry = tile = offset = 0
    for i, (matrix, place) in enumerate(zip(matrices, places, strict=True)):
        if not matrix.tiles:
            raise ConfigError("a matrix without tiles cannot be decoded: leave it out")
        entries = _choice(matrix.tables, bank, None if values is None else values[i], offset)
        slots = _slots(matrix, place, padding=padding, strips=spare is not None)
        slots[:, Slot.WORD] += word
        slots[:, Slot.COLUMN] += column
        slots[:, Slot.ROW] += row
        slots[:, Slot.CHOICE] = entry
        slots[:, Slot.TILE] += tile
        kind = matrix.tables.trellis is not None, bool(matrix.classes.rows.any())
        states = np.stack([each.states for each in matrix.tiles])
        groups.setdefault(kind, []).append((slots, states))
        choice.append(entries)
        word += len(matrix.words)
        column += len(matrix.classes.columns)
        row += matrix.classes.rows.size
        entry += len(entries)
        tile += len(matrix.tiles)
        offset += 0 if values is None else values[i].table.size
    if offset >= 2**31 or len(bank.tables) >= 2**31 // TOTAL:
        raise ConfigError(
            f"a batch has {len(bank.tables)} tables and {offset} values, a kernel counts them in "
            "31 bits: decode fewer matrices at once"
        )
    return TileBatch(
        launches=[
            _launch(
                np.concatenate([slots for slots, _ in parts]),
                np.concatenate([states for _, states in parts]),
                kind,
                tiles_per_program,
                spare,
            )
            for kind, parts in groups.items()
        ],
        words=[matrix.words for matrix in matrices],
        column_classes=_joined([matrix.classes.columns for matrix in matrices], np.uint8),
        row_classes=_joined([matrix.classes.rows.reshape(-1) for matrix in matrices], np.uint8),
        choice=_joined(choice, np.int64),
        packed=_joined([rans.lookup(bank.tables).reshape(-1)], np.uint32),
        values=_joined([each.table.reshape(-1) for each in values or ()], np.float32),
        tiles=[len(matrix.tiles) for matrix in matrices],
    )


def _joined(arrays: list[NDArray], dtype: type) -> NDArray:
    """One array that is never empty: a kernel wants an address even where it reads nothing."""
    found: NDArray = np.concatenate([*arrays, np.zeros(0, dtype)]).astype(dtype, copy=False)
    return found if len(found) else np.zeros(1, dtype)


def _choice(
    tables: DecodingTables, bank: TableBank, values: Values | None, offset: int
) -> NDArray[np.int64]:
    """Table and start of every class, lane and parity."""
    numbers = np.array([bank.place(table) for table in tables.tables], dtype=np.int64)
    firsts = np.array([table.first for table in tables.tables], dtype=np.int64)
    choice = tables.choice if tables.trellis is not None else tables.choice[..., None]
    parities = np.arange(choice.shape[2])
    starts = firsts[choice] * len(parities) + parities
    if values is not None:
        classes = np.arange(len(choice))[:, None, None] * values.table.shape[1]
        starts += offset + classes - values.first
    return ((numbers[choice] << 32) | (starts & 0xFFFFFFFF)).reshape(-1)


def _slots(matrix: Coded, place: Place, *, padding: bool, strips: bool) -> NDArray[np.int64]:
    slots = np.zeros((len(matrix.tiles), len(Slot)), dtype=np.int64)
    for i, (slot, tile) in enumerate(zip(slots, matrix.tiles, strict=True)):
        row, rows = tile.chunk * rans.LANES, tile.chunks * rans.LANES
        column = tile.column // matrix.tile_columns if strips else tile.column
        slot[Slot.WORD] = tile.word
        slot[Slot.WORDS] = tile.words
        slot[Slot.COLUMNS] = tile.columns
        slot[Slot.CHUNKS] = tile.chunks
        slot[Slot.ROWS] = rows if padding else min(rows, matrix.rows - row)
        slot[Slot.COLUMN] = tile.column
        slot[Slot.ROW] = row
        slot[Slot.OUT] = place.start + column * place.column_stride + row * place.row_stride
        slot[Slot.TILE] = i
    trellis = matrix.tables.trellis
    slots[:, Slot.COLUMN_STRIDE] = place.column_stride
    slots[:, Slot.ROW_STRIDE] = place.row_stride
    if trellis is not None:
        slots[:, Slot.ON_PARITY] = trellis.on_parity
        slots[:, Slot.ON_BIT] = trellis.on_bit
    return slots


def _launch(
    slots: NDArray[np.int64],
    states: NDArray[np.uint32],
    kind: tuple[bool, bool],
    tiles_per_program: int,
    spare: int | None,
) -> Launch:
    """Sort by shape, the longest first, and fill every group of equal shape up."""
    shapes, group = np.unique(slots[:, [Slot.COLUMNS, Slot.CHUNKS]], axis=0, return_inverse=True)
    order: list[NDArray[np.int64]] = []
    repeated: list[NDArray[np.bool_]] = []
    for i in np.argsort(-shapes.prod(axis=1), kind="stable"):
        members = np.flatnonzero(group == i)
        missing = -len(members) % tiles_per_program
        order.append(np.append(members, np.repeat(members[-1], missing)))
        repeated.append(np.arange(len(order[-1])) >= len(members))
    rows, again = np.concatenate(order), np.concatenate(repeated)
    slots, states = slots[rows], states[rows]
    slots[again, Slot.TILE] = -1
    if spare is not None:
        slots[again, Slot.OUT] = spare
    return Launch(slots, states, *kind)
