"""Tiles: how a matrix is cut, and how one tile's symbols become words and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nwc.coding import rans
from nwc.coding.tables import FrequencyTable
from nwc.coding.trellis import Trellis
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray


OFF_THE_TRELLIS = "lane {} leaves the trellis"


MAX_TILE = 2**18
"""Weights in the largest tile that the format knows."""


class Profile(NamedTuple):
    """How a matrix is cut into tiles.

    Args:
        rows: of a tile at most.
        weights: of a tile, wished for.
        small: matrices of so many weights at most are cut as little as the format allows: work
            enough for many hands then lies in other matrices, and an index only costs bits.
    """

    rows: int
    weights: int
    small: int = 0


PROFILES: dict[str, Profile] = {
    "balanced": Profile(4096, 2**16, small=2**20),
    "archive": Profile(4096, 2**18),
    "latency": Profile(4096, 2**14),
}


class Classes(NamedTuple):
    """Which tables code a matrix or a tile: the class of a place is its column's plus its row's.

    Args:
        columns: [columns].
        rows: [chunks, 16].
    """

    columns: NDArray[np.uint8]
    rows: NDArray[np.uint8]

    @classmethod
    def by_column(cls, columns: NDArray[np.uint8], chunks: int) -> Classes:
        """Classes that columns alone decide."""
        return cls(columns, np.zeros((chunks, rans.LANES), dtype=np.uint8))

    def part(self, columns: slice, chunks: slice) -> Classes:
        """Those of a tile."""
        return Classes(self.columns[columns], self.rows[chunks])

    def full(self) -> NDArray[np.uint8]:
        """Class of every place [columns, chunks, 16]."""
        return self.columns[:, None, None] + self.rows


TileDecoder = Callable[
    ["NDArray[np.uint16]", "NDArray[np.uint32]", Classes, "DecodingTables"], "NDArray[np.int16]"
]
"""(words, states [16], classes, tables) -> integers [columns, chunks, 16]."""


class CodedTile(NamedTuple):
    """One of several tiles that lie side by side and decode together.

    Args:
        words: of the tile.
        states: [16], those of the index.
        columns: how many of the columns are its own.
        name: what an error message begins with.
    """

    words: NDArray[np.uint16]
    states: NDArray[np.uint32]
    columns: int
    name: str = ""


TileEncoder = Callable[
    ["NDArray[np.int16]", Classes, "EncodingTables"],
    "tuple[NDArray[np.uint16], NDArray[np.uint32]]",
]
"""(integers [columns, chunks, 16], classes, tables) -> words, states [16]."""


@dataclass(frozen=True)
class EncodingTables:
    """Tables of a matrix, ready to encode with.

    Args:
        tables: the distinct tables.
        choice: [classes, 16], which table codes each class and lane; with a trellis
            [classes, 16, 2], for each parity.
        trellis: the state machine; None for scalar streams.
    """

    tables: list[FrequencyTable]
    choice: NDArray[np.int64]
    trellis: Trellis | None = None


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

    @cached_property
    def kernel_cache(self) -> dict[str, Any]:
        """What kernels derive from the tables, under their names."""
        return {}


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


def tile_shape(chunks: int, columns: int, profile: Profile) -> tuple[int, int]:
    """Chunks and columns of a tile.

    Example:
        >>> tile_shape(256, 4096, PROFILES["balanced"])
        (256, 16)
    """
    tile_chunks = max(1, min(chunks, profile.rows // rans.LANES))
    small = chunks * rans.LANES * columns <= profile.small
    wished = (MAX_TILE if small else profile.weights) // (tile_chunks * rans.LANES)
    return tile_chunks, max(1, min(columns, wished))


def tile_origins(
    chunks: int, columns: int, tile_chunks: int, tile_columns: int
) -> list[tuple[int, int]]:
    """First column and first chunk of every tile, in the order of the file."""
    return [
        (column, chunk)
        for column in range(0, columns, tile_columns)
        for chunk in range(0, chunks, tile_chunks)
    ]


def split_parity(
    integers: NDArray[np.int16], trellis: Trellis | None
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Symbols and parities of integers; a scalar stream's integers are its symbols."""
    if trellis is None:
        return integers, np.zeros_like(integers)
    return integers >> 1, integers & 1


def _tables_of(tables: EncodingTables, classes: Classes) -> NDArray[np.int64]:
    """Table of every place of a tile: [columns, chunks, 16], with a trellis [..., 2]."""
    return tables.choice[classes.full(), np.arange(rans.LANES)]


def encode_tile(
    integers: NDArray[np.int16], classes: Classes, tables: EncodingTables
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Plain `TileEncoder`.

    Raises:
        BitstreamError: the integers leave the trellis.
    """
    choice = _tables_of(tables, classes)
    symbols, parities = split_parity(integers, tables.trellis)
    if tables.trellis is not None:
        _check_path(integers.reshape(-1, rans.LANES), tables.trellis)
        choice = np.take_along_axis(choice, parities[..., None].astype(np.int64), 3)
    return rans.encode(
        symbols.reshape(-1, rans.LANES).astype(np.int64),
        choice.reshape(-1, rans.LANES),
        tables.tables,
    )


def _check_path(integers: NDArray[np.int16], trellis: Trellis) -> None:
    for lane in range(rans.LANES):
        state = 0
        for n in integers[:, lane].tolist():
            if n & 1 != state & 1:
                raise BitstreamError(OFF_THE_TRELLIS.format(lane))
            state = trellis.step(state, n >> 1)


def decode_tile(
    words: NDArray[np.uint16], states: NDArray[np.uint32], classes: Classes, tables: DecodingTables
) -> NDArray[np.int16]:
    """Plain `TileDecoder`."""
    choice = _tables_of(tables, classes)
    flat = choice.reshape(-1, *choice.shape[2:])
    if tables.trellis is None:
        integers = rans.decode(words, states, flat, tables.tables)
    else:
        integers = rans.decode_trellis(words, states, flat, tables.tables, tables.trellis)
    return integers.reshape(choice.shape[:3]).astype(np.int16)
