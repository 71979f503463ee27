"""How often every symbol occurs, table by table: what tables are counted and chosen from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.coding.rans import LANES
from nwc.coding.tables import FrequencyTable, choose_table, cost, from_counts
from nwc.coding.tiling import Classes, split_parity
from nwc.coding.trellis import Trellis

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 2**20
"""Symbols at a time: what is worked on is eight times as large as they are."""

Tables = list[list[FrequencyTable]]
"""For each class one table, or one for each lane; with a trellis one for each parity of those."""


class Cell(NamedTuple):
    """What one table codes.

    Args:
        group: its class.
        place: which table of the class it is.
        first: smallest symbol.
        counts: how often that and every integer after it occur.
    """

    group: int
    place: int
    first: int
    counts: NDArray[np.int64]


def census(
    integers: NDArray[np.int16],
    classes: Classes,
    groups: int,
    *,
    share_lanes: bool = True,
    trellis: Trellis | None = None,
) -> Iterator[Cell]:
    """Count the symbols of every table of a matrix.

    Args:
        integers: [columns, chunks, 16].
        classes: of columns and rows.
        groups: number of classes.
        share_lanes: one table for all lanes of a class.
        trellis: of the stream.

    Example:
        >>> one = np.array([[[0, 1, 1] + 13 * [0]]], dtype=np.int16)
        >>> classes = Classes.by_column(np.zeros(1, dtype=np.uint8), 1)
        >>> [(cell.first, cell.counts.tolist()) for cell in census(one, classes, 1)]
        [(0, [14, 2])]
    """
    parities = 1 if trellis is None else 2
    for lanes in [slice(None)] if share_lanes else [slice(i, i + 1) for i in range(LANES)]:
        part = integers[:, :, lanes]
        rows = classes.rows[:, lanes]
        low = int(part.min(initial=0)) >> (parities - 1)
        span = (int(part.max(initial=0)) >> (parities - 1)) - low + 1
        counts = np.zeros((groups * parities, span), dtype=np.int64)
        step = max(1, _BATCH // max(1, part[0].size))
        for start in range(0, len(part), step):
            symbols, parity = split_parity(part[start : start + step], trellis)
            which = classes.columns[start : start + step, None, None].astype(np.int64) + rows
            key = ((which * parities + parity) * span + symbols - low).reshape(-1)
            counts += np.bincount(key, minlength=counts.size).reshape(counts.shape)
        first_place = 0 if share_lanes else parities * (lanes.start or 0)
        for row, row_counts in enumerate(counts):
            live = np.flatnonzero(row_counts)
            ends = (int(live[0]), int(live[-1])) if len(live) else (0, 0)
            yield Cell(
                row // parities,
                first_place + row % parities,
                low + ends[0],
                row_counts[ends[0] : ends[1] + 1],
            )


def choose_tables(
    cells: Iterator[Cell], groups: int, priors: Tables | None, *, paired: bool = False
) -> Tables:
    """For each class its tables: counted or prior, whichever makes the file smaller.

    Args:
        cells: of `census`.
        groups: number of classes.
        priors: laid out as the result; None if there are none.
        paired: see `from_counts`.
    """
    chosen: list[dict[int, FrequencyTable]] = [{} for _ in range(groups)]
    for cell in cells:
        prior = (
            None if priors is None else priors[cell.group][cell.place % len(priors[cell.group])]
        )
        chosen[cell.group][cell.place] = choose_table(
            cell.first, cell.counts, prior, paired=paired
        )
    return [[row[place] for place in sorted(row)] for row in chosen]


def empirical_bits(cells: Iterator[Cell]) -> float:
    """Entropy in bits under counted tables: what an ideal coder with ideal tables takes."""
    total = 0.0
    for cell in cells:
        counts = cell.counts[cell.counts > 0]
        total += float((counts * (np.log2(counts.sum()) - np.log2(counts))).sum())
    return total


def coded_bits(cells: Iterator[Cell], *, paired: bool = False) -> float:
    """The same under tables of 12 bits and 256 places, symbols that find none patched.

    What payload and patch list take, without tables and lanes.
    """
    return sum(
        cost(from_counts(cell.first, cell.counts, paired=paired), cell.first, cell.counts)
        for cell in cells
    )
