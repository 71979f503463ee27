"""Decides what a column is coded as: the Viterbi algorithm in numba.

The plain algorithm that it must equal is `quantizers.trellis.decide`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

FREE = -1
"""End state of a lane that may end anywhere."""


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
def decide(
    targets: NDArray[np.float32],
    scales: NDArray[np.float32],
    row_scales: NDArray[np.float32],
    classes: NDArray[np.int64],
    row_classes: NDArray[np.uint8],
    starts: NDArray[np.int64],
    layers: NDArray[np.int64],
    weights: NDArray[np.float64],
    steps: NDArray[np.float32],
    values: NDArray[np.float32],
    first: int,
    costs: NDArray[np.float64],
    first_symbol: int,
    states: int,
    on_parity: int,
    on_bit: int,
    path: NDArray[np.int8],
    ends: NDArray[np.int8],
    integers: NDArray[np.int16],
    restored: NDArray[np.float32],
) -> None:
    """See `quantizers.trellis.decide`; fills `path`, `integers` and `restored`."""
    residues = 1 if states == 1 else 4
    odd = 0 if states == 1 else 1
    origin = np.zeros((states, 2), np.int64)
    residue_of = np.zeros((states, 2), np.int64)
    branches = np.zeros(states, np.int64)
    for state in range(states):
        parity = state & odd
        for bit in range(1 + odd):
            to = (state >> 1) ^ (parity * on_parity) ^ (bit * on_bit)
            origin[to, branches[to]] = state
            residue_of[to, branches[to]] = parity + 2 * bit
            branches[to] += 1
    longest = 0
    for segment in range(len(layers)):
        longest = max(longest, starts[segment + 1] - starts[segment])
    came = np.empty((longest, states), np.int8)
    best = np.empty((longest, residues), np.int32)
    total, after = np.empty(states), np.empty(states)
    cost = np.empty(residues)
    last = first + values.shape[2] - 1
    symbols = costs.shape[3]

    for segment in range(len(layers)):
        layer = layers[segment]
        begin, length = starts[segment], starts[segment + 1] - starts[segment]
        for lane in range(16):
            for state in range(states):
                total[state] = math.inf
            total[path[segment, lane]] = 0.0
            for t in range(length):
                row = 16 * (begin + t) + lane
                group = classes[segment] + row_classes[row]
                step = scales[segment] * row_scales[row] * steps[layer, group]
                weight = weights[segment] if step > 0 else 0.0
                u = targets[row] / step if step > 0 else 0.0
                place = min(max(u * (1 + odd), first + 8.0), last - 8.0)
                for residue in range(residues):
                    low = residue + residues * math.floor((place - residue) / residues)
                    parity = residue & odd
                    lowest = math.inf
                    for n in (low, low + residues):
                        error = u - values[layer, group, n - first] / steps[layer, group]
                        at = (n >> odd) - first_symbol
                        at = min(max(at, 0), symbols - 1)
                        found = weight * error * error + costs[layer, group, parity, at]
                        if found < lowest:
                            lowest = found
                            best[t, residue] = n
                    cost[residue] = lowest
                for state in range(states):
                    lowest = total[origin[state, 0]] + cost[residue_of[state, 0]]
                    came[t, state] = 0
                    if branches[state] == 2:
                        other = total[origin[state, 1]] + cost[residue_of[state, 1]]
                        if other < lowest:
                            lowest = other
                            came[t, state] = 1
                    after[state] = lowest
                total, after = after, total
            state = int(ends[segment, lane])
            if state < 0:
                state = 0
                for other_state in range(1, states):
                    if total[other_state] < total[state]:
                        state = other_state
            path[segment, lane] = state
            for t in range(length - 1, -1, -1):
                row = 16 * (begin + t) + lane
                branch = came[t, state]
                n = best[t, residue_of[state, branch]]
                group = classes[segment] + row_classes[row]
                integers[row] = n
                restored[row] = values[layer, group, n - first] * scales[segment] * row_scales[row]
                state = origin[state, branch]
