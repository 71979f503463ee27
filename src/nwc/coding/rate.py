"""Where the bytes of a compressed checkpoint go."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nwc.coding.bitstream import Bitstream
from nwc.coding.container import Section
from nwc.coding.rans import LANES
from nwc.coding.tables import MAX_SYMBOLS
from nwc.coding.tiling import DecodingTables, TileDecoder, decode_tile, split_parity

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    Section.ROW_CLASSES: "levels",
    Section.INDEX: "index",
    Section.PATCHES: "patches",
    Section.SCALES_F16: "scales",
    Section.SCALES_LOG: "scales",
    Section.SCALE: "scales",
    Section.ROW_SCALES: "scales",
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
        classes = stream.classes_of(tile)
        integers = decoder(stream.words(tile), tile.states, classes, stream.tables)
        symbols, parities = split_parity(integers, stream.tables.trellis)
        choice = stream.tables.choice[classes.full(), np.arange(LANES)]
        if stream.tables.trellis is not None:
            choice = np.take_along_axis(choice, parities[..., None].astype(np.int64), 3)[..., 0]
        place = symbols.astype(np.int64) - stream.tables.first[choice]
        total += float(lengths[choice, place].sum())
    return total


def _length_rows(tables: DecodingTables) -> NDArray[np.float64]:
    rows = np.zeros((len(tables.tables), MAX_SYMBOLS))
    for row, table in zip(rows, tables.tables, strict=True):
        row[: len(table)] = table.code_lengths()
    return rows
