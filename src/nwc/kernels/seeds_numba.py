"""The search of SeedLM for the best seed of every block of weights, in numba.

The plain search that it must equal is `methods.seedlm.best_seeds_plainly`. With U = Q R, Q of
orthonormal columns, no coefficients of a seed do better than |w|^2 - |Q^T w|^2. Only seeds for
which that is below the best error found so far are rounded and measured: a few in a thousand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SEEDS = 256
"""Seeds whose bounds are found at once: what they need stays in the first cache."""


@njit(
    cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "contract"}
)
def _projections(
    block: NDArray[np.float32], Q: NDArray[np.float32], start: int, power: NDArray[np.float32]
) -> None:
    """|Q^T w|^2 for the seeds from `start` on."""
    P, C, _ = Q.shape
    one = np.empty_like(power)
    power[:] = 0
    for p in range(P):
        one[:] = 0
        for c in range(C):
            weight = block[c]
            row = Q[p, c, start : start + len(power)]
            for s in range(len(power)):
                one[s] += weight * row[s]
        for s in range(len(power)):
            power[s] += one[s] * one[s]


@njit(cache=True, nogil=True, boundscheck=False)
def measure(
    block: NDArray[np.float32],
    U: NDArray[np.float32],
    inverse: NDArray[np.float32],
    exponents: tuple[int, int],
    codes: NDArray[np.int64],
) -> tuple[float, int]:
    """Error of a block under one seed, its coefficients rounded; and their exponent.

    Args:
        block: [C].
        U: [C, P].
        inverse: its pseudo-inverse [P, C].
        exponents: the least and the greatest that may be used.
        codes: [P], filled with integers from -8 to 7.
    """
    C, P = U.shape
    exact = np.empty(P)
    largest = 0.0
    for p in range(P):
        exact[p] = 0.0
        for c in range(C):
            exact[p] += float(inverse[p, c]) * block[c]
        largest = max(largest, abs(exact[p]))
    exponent = exponents[0]
    while exponent < exponents[1] and largest > 7.5 * 2.0**exponent:
        exponent += 1
    step = 2.0**exponent
    for p in range(P):
        codes[p] = min(max(int(np.rint(exact[p] / step)), -8), 7)
    error = 0.0
    for c in range(C):
        rest = float(block[c])
        for p in range(P):
            rest -= float(U[c, p]) * codes[p] * step
        error += rest * rest
    return error, exponent


@njit(cache=True, nogil=True, boundscheck=False)
def best_seeds(
    blocks: NDArray[np.float32],
    U: NDArray[np.float32],
    inverse: NDArray[np.float32],
    Q: NDArray[np.float32],
    exponents: tuple[int, int],
    seeds: NDArray[np.int64],
    restored: NDArray[np.float32],
) -> int:
    """The best seed of every block.

    Args:
        blocks: [blocks, C].
        U: [seeds, C, P].
        inverse: pseudo-inverses of U [seeds, P, C].
        Q: orthonormal columns that span those of U [P, C, seeds].
        exponents: the least and the greatest that may be used.
        seeds: [blocks], filled.
        restored: [blocks, C], filled.

    Returns:
        How many pairs of block and seed were measured.
    """
    count, C = blocks.shape
    total, P = len(U), U.shape[2]
    measured = 0
    best = np.full(count, np.inf)
    power = np.empty(_SEEDS, np.float32)
    codes = np.empty(P, np.int64)
    for start in range(0, total, _SEEDS):
        part = power[: min(_SEEDS, total - start)]
        for b in range(count):
            _projections(blocks[b], Q, start, part)
            whole = 0.0
            for c in range(C):
                whole += float(blocks[b, c]) ** 2
            # Bounds are in FP32: room for what they lose keeps the search exact.
            enough = whole * (1 - 1e-5) - best[b]
            if part.max() <= enough:
                continue
            for s in range(len(part)):
                if part[s] > enough:
                    measured += 1
                    seed = start + s
                    error, exponent = measure(blocks[b], U[seed], inverse[seed], exponents, codes)
                    if error < best[b]:
                        best[b] = error
                        enough = whole * (1 - 1e-5) - error
                        seeds[b] = seed
                        for c in range(C):
                            value = 0.0
                            for p in range(P):
                                value += float(U[seed, c, p]) * codes[p]
                            restored[b, c] = value * 2.0**exponent
    return measured
