"""Where the bytes of a compressed checkpoint go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nwc.coding import tables
from nwc.coding.bitstream import Bitstream
from nwc.coding.container import Section
from nwc.coding.tiling import TileDecoder, decode_tile

if TYPE_CHECKING:
    from nwc.coding.tiling import DecodingTables


@dataclass(frozen=True, kw_only=True)
class BitBudget:
    """Bytes by purpose; budgets add up.

    Example:
        >>> (BitBudget(payload=3) + BitBudget(payload=1, index=2)).total
        6
    """

    payload: int = 0
    patches: int = 0
    tables: int = 0
    index: int = 0
    scales: int = 0
    levels: int = 0
    codec: int = 0
    headers: int = 0

    def __add__(self, other: BitBudget) -> BitBudget:
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return BitBudget(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(dataclasses.asdict(self).values())

    def bits_per(self, parameters: int) -> dict[str, float]:
        """Bits per parameter of every purpose."""
        return {k: 8 * v / max(parameters, 1) for k, v in dataclasses.asdict(self).items()}


_PURPOSE = {
    Section.TABLES: "tables",
    Section.TABLE_MAP: "tables",
    Section.CLASSES: "levels",
    Section.INDEX: "index",
    Section.PATCHES: "patches",
    Section.SCALES_F16: "scales",
    Section.SCALES_LOG: "scales",
    Section.SCALE: "scales",
}


def budget(stream: Bitstream) -> BitBudget:
    """Bytes of one stream by purpose."""
    container = stream.container
    parts = {"payload": 2 * stream.head.words}
    for kind, data in container.sections.items():
        if kind in _PURPOSE:
            name = _PURPOSE[Section(kind)]
            parts[name] = parts.get(name, 0) + len(data)
    return BitBudget(headers=len(container.view) - sum(parts.values()), **parts)


def ideal_bits(stream: Bitstream, decoder: TileDecoder = decode_tile) -> float:
    """Ideal code length of the coded symbols under the tables they are coded with.

    Patched symbols count with the stand-in that the lanes really code.
    """
    total = 0.0
    lengths = _length_rows(stream.tables)
    for tile in stream.tiles:
        words = stream.words(tile)
        classes = stream.classes[tile.column : tile.column + tile.columns]
        symbols = decoder(words, tile.states, classes, tile.chunks, stream.tables)
        choice = stream.tables.choice[classes][:, None, :]
        place = symbols.astype(np.int64) - stream.tables.first[choice]
        total += float(lengths[choice, place].sum())
    return total


def _length_rows(tables: DecodingTables) -> np.ndarray:
    rows = np.zeros((len(tables.tables), 256))
    for row, table in zip(rows, tables.tables, strict=True):
        row[: len(table)] = table.code_lengths()
    return rows


def empirical_bits(symbols: np.ndarray, classes: np.ndarray, share_channels: bool) -> float:
    """Entropy in bits of symbols [columns, chunks, 16] under tables counted a class (and channel).

    What an ideal coder with ideal tables takes.
    """
    total = 0.0
    for _, counts in _counted(symbols, classes, share_channels):
        counts = counts[counts > 0]
        total += float((counts * (np.log2(counts.sum()) - np.log2(counts))).sum())
    return total


def coded_bits(symbols: np.ndarray, classes: np.ndarray, share_channels: bool) -> float:
    """The same under tables of 12 bits and 256 places, symbols that find none patched.

    What payload and patch list take, without tables and lanes.
    """
    return sum(
        tables.cost(tables.from_counts(first, counts), first, counts)
        for first, counts in _counted(symbols, classes, share_channels)
    )


def _counted(
    symbols: np.ndarray, classes: np.ndarray, share_channels: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """What every table codes: its first symbol, and counts."""
    for k in np.unique(classes):
        members = symbols[classes == k]
        for values in [members] if share_channels else np.moveaxis(members, 2, 0):
            yield tables.count(values)
