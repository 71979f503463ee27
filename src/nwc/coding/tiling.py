"""Tiles: how a matrix is cut, and how one tile's symbols become words and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.coding import rans
from nwc.coding.tables import FrequencyTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
"""(words, states [16], column classes, chunks, tables) -> symbols [columns, chunks, 16]."""

TileEncoder = Callable[
    ["NDArray[np.int16]", "NDArray[np.uint8]", "EncodingTables"],
    "tuple[NDArray[np.uint16], NDArray[np.uint32]]",
]
"""(symbols [columns, chunks, 16], column classes, tables) -> words, states [16]."""


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


def tile_shape(chunks: int, columns: int, profile: Profile) -> tuple[int, int]:
    """Chunks and columns of a tile.

    Example:
        >>> tile_shape(256, 4096, PROFILES["balanced"])
        (256, 8)
    """
    tile_chunks = max(1, min(chunks, profile.rows // rans.LANES))
    wished = profile.weights // (tile_chunks * rans.LANES)
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
