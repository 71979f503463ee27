"""The Viterbi algorithm on the bitshift trellis, in numba.

The plain algorithm that it must equal is `quantizers.qtip.best_path_plainly`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


@njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "contract"}
)
def best_path(
    targets: NDArray[np.float32],
    values: NDArray[np.float32],
    bits: int,
    states: NDArray[np.int64],
) -> None:
    """The cheapest states for one sequence.

    All states that share their upper L - bits bits have the same predecessors, so that the minimum
    over these is taken once for them all: a step costs two passes over 2^L states at any rate.

    Args:
        targets: [steps, V].
        values: [V, 2^L], what a state is decoded to.
        bits: that every step shifts into the state.
        states: [steps], filled.
    """
    steps, dimension = targets.shape
    count = values.shape[1]
    heads = count >> bits
    branches = 1 << bits
    total = np.zeros(count, np.float32)
    lowest = np.empty(heads, np.float32)
    came = np.empty((steps, heads), np.uint16)
    for t in range(steps):
        if t == 0:
            lowest[:] = 0
        else:
            lowest[:] = total[:heads]
            came[t] = 0
            for branch in range(1, branches):
                part = total[branch * heads : (branch + 1) * heads]
                for head in range(heads):
                    if part[head] < lowest[head]:
                        lowest[head] = part[head]
                        came[t, head] = branch
            # What all paths share says nothing, and costs precision.
            lowest -= lowest.min()
        for head in range(heads):
            total[head * branches : (head + 1) * branches] = lowest[head]
        for v in range(dimension):
            target = targets[t, v]
            row = values[v]
            for state in range(count):
                error = target - row[state]
                total[state] += error * error
    state = int(total.argmin())
    for t in range(steps - 1, -1, -1):
        states[t] = state
        head = state >> bits
        state = came[t, head] * heads + head
