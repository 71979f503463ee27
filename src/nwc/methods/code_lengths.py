"""What symbols cost while paths are decided: bits for each class, parity and symbol.

An encoder does not know the tables before it has chosen the symbols that they are counted from. It
starts from the codec's prior, quantises a part of the matrix and counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from nwc.coding.census import Cell
from nwc.coding.tables import PATCH_BITS, FrequencyTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST_SYMBOL = -128
SYMBOLS = 256

_WEIGHT = 256
"""How many counted symbols the prior is worth."""


def of_tables(tables: list[list[FrequencyTable]]) -> NDArray[np.float64]:
    """Code lengths [classes, parities, symbols]; what a table lacks costs a patch."""
    lengths = np.full((len(tables), len(tables[0]), SYMBOLS), float(PATCH_BITS))
    for row, group in zip(lengths, tables, strict=True):
        for place, table in zip(row, group, strict=True):
            found = table.code_lengths()
            start = table.first - FIRST_SYMBOL
            place[start : start + len(table)] = np.where(np.isinf(found), PATCH_BITS, found)
    return lengths


def counted(prior: NDArray[np.float64], cells: Iterable[Cell]) -> NDArray[np.float64]:
    """Code lengths after counting some symbols.

    Args:
        prior: code lengths [classes, parities, symbols] before.
        cells: the counts.
    """
    lengths = prior.copy()
    for group, place, first, counts in cells:
        weights = _WEIGHT * np.exp2(-prior[group, place])
        low = max(first, FIRST_SYMBOL)
        high = min(first + len(counts), FIRST_SYMBOL + SYMBOLS)
        if low < high:
            weights[low - FIRST_SYMBOL : high - FIRST_SYMBOL] += counts[low - first : high - first]
        lengths[group, place] = np.minimum(np.log2(weights.sum()) - np.log2(weights), PATCH_BITS)
    return lengths
