"""Nearest vectors of the E8P codebook, in numba.

The plain search that it must equal is `quantizers.vector.nearest` over all 2^16 vectors. For each
of the two shifts every one of 256 absolute values takes the signs of the point; where that makes
the sum odd, the sign whose change costs least is turned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHIFT = 0.25


@njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "contract"}
)
def nearest(
    points: NDArray[np.float32], magnitudes: NDArray[np.float32], found: NDArray[np.float32]
) -> None:
    """Fill `found` [points, 8].

    Args:
        points: [points, 8], finite.
        magnitudes: [entries, 8], half-odd.
        found: [points, 8], filled.
    """
    entries, dimension = magnitudes.shape
    columns = magnitudes.T.copy()
    norms = np.zeros(entries, np.float32)
    odd = np.zeros(entries, np.bool_)
    for c in range(entries):
        total = np.float32(0)
        for i in range(dimension):
            norms[c] += magnitudes[c, i] ** 2
            total += magnitudes[c, i]
        odd[c] = int(total) % 2 == 1
    dots = np.empty(entries, np.float32)
    least = np.empty(entries, np.float32)
    size = np.empty(dimension, np.float32)
    for p in range(len(points)):
        closest = np.float32(np.inf)
        for turn in range(2):
            shift = np.float32(_SHIFT if turn == 0 else -_SHIFT)
            negative = 0
            power = np.float32(0)
            for i in range(dimension):
                moved = points[p, i] - shift
                negative += moved < 0
                size[i] = abs(moved)
                power += moved * moved
            dots[:] = 0
            least[:] = np.inf
            for i in range(dimension):
                factor, row = size[i], columns[i]
                for c in range(entries):
                    product = factor * row[c]
                    dots[c] += product
                    least[c] = min(least[c], product)
            choice = -1
            for c in range(entries):
                # An odd number of signs changes the sum, of half-odd entries, by an odd number.
                turned = least[c] if odd[c] != (negative % 2 == 1) else np.float32(0)
                distance = power + norms[c] - 2 * dots[c] + 4 * turned
                if distance < closest:
                    closest = distance
                    choice = c
            if choice >= 0:
                _fill(points[p], shift, magnitudes[choice], odd[choice], found[p])


@njit(cache=True, nogil=True, boundscheck=False)
def _fill(
    point: NDArray[np.float32],
    shift: np.float32,
    magnitude: NDArray[np.float32],
    odd: bool,
    found: NDArray[np.float32],
) -> None:
    """The absolute values with the signs of the point, one of them turned if need be."""
    negative = 0
    weakest = 0
    for i in range(len(point)):
        moved = point[i] - shift
        negative += moved < 0
        found[i] = (-magnitude[i] if moved < 0 else magnitude[i]) + shift
        if abs(moved) * magnitude[i] < abs(point[weakest] - shift) * magnitude[weakest]:
            weakest = i
    if odd != (negative % 2 == 1):
        found[weakest] = 2 * shift - found[weakest]
