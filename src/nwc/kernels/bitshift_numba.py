"""The Viterbi algorithm on the bitshift trellis, in numba.

The plain algorithm that it must equal is `quantizers.qtip.best_path_plainly`.

States that share their upper L - kV bits (their head) have the same predecessors, so that the
minimum over these is taken once for them all. Head h is reached from state `branch * heads + h`,
for which the step before knows the least cost of its own head. States are read in one of two
orders, whichever has the longer runs of a stride of one. Which branch was the best is not kept but
found again, for the heads of the best path alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANY = -1
"""Head for a path that may start and end anywhere."""

_RENEW = 64
"""Steps after which what all paths share is taken off: it says nothing, and costs precision."""


@njit(cache=True, nogil=True, boundscheck=False)
def best_path(
    targets: NDArray[np.float32],
    values: NDArray[np.float32],
    bits: int,
    states: NDArray[np.int64],
) -> None:
    """The cheapest states for one sequence.

    Args:
        targets: [steps, V].
        values: [V, 2^L], what a state is decoded to; V = 1 or 2.
        bits: that every step shifts into the state.
        states: [steps], filled.
    """
    lowest = np.empty((len(targets), values.shape[1] >> bits), np.float32)
    _search(targets, values, _reordered(values, bits), bits, ANY, lowest, states)


@njit(cache=True, nogil=True, boundscheck=False)
def ring_paths(
    targets: NDArray[np.float32],
    values: NDArray[np.float32],
    bits: int,
    states: NDArray[np.int64],
) -> None:
    """Good states for sequences whose last state leads to their first (tail biting).

    Two searches (QTIP, Algorithm 4): the sequence turned by half says which head the path should
    have at what was its start; then the best path that starts and ends there.

    Args:
        targets: [sequences, steps, V].
        values: [V, 2^L], what a state is decoded to; V = 1 or 2.
        bits: that every step shifts into the state.
        states: [sequences, steps], filled.
    """
    count, steps, _ = targets.shape
    lowest = np.empty((steps, values.shape[1] >> bits), np.float32)
    reordered = _reordered(values, bits)
    turned = np.empty_like(targets[0])
    half = steps // 2
    for sequence in range(count):
        turned[:half] = targets[sequence, steps - half :]
        turned[half:] = targets[sequence, : steps - half]
        _search(turned, values, reordered, bits, ANY, lowest, states[sequence])
        head = states[sequence, half] >> bits
        _search(targets[sequence], values, reordered, bits, head, lowest, states[sequence])


@njit(cache=True, nogil=True, boundscheck=False)
def _reordered(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """[V, 2^L]: values by the lower bits of their state first, then by its head."""
    dimension, count = values.shape
    heads = count >> bits
    found = np.empty((dimension, count), np.float32)
    for v in range(dimension):
        for state in range(count):
            tail = state & ((1 << bits) - 1)
            found[v, tail * heads + (state >> bits)] = values[v, state]
    return found


@njit(cache=True, nogil=True, boundscheck=False)
def _search(
    targets: NDArray[np.float32],
    values: NDArray[np.float32],
    reordered: NDArray[np.float32],
    bits: int,
    ring: int,
    lowest: NDArray[np.float32],
    states: NDArray[np.int64],
) -> None:
    """The cheapest states whose first head, and the head that the last leads to, is `ring`.

    `lowest` [steps, heads] is room for the least cost of reaching a head.
    """
    steps = len(targets)
    heads = values.shape[1] >> bits
    if ring == ANY:
        lowest[0] = 0
    else:
        lowest[0] = np.inf
        lowest[0, ring] = 0
    best = np.empty(heads, np.float32)
    length = heads >> bits
    for t in range(1, steps):
        if length >= 1 << bits:
            _advance_reordered(targets[t - 1], reordered, bits, lowest[t - 1], best)
            _restore_order(best, bits, lowest[t])
        else:
            _advance(targets[t - 1], values, bits, lowest[t - 1], lowest[t])
        if t % _RENEW == 0:
            lowest[t] -= lowest[t].min()
    head = ring
    if ring == ANY:
        _advance(targets[steps - 1], values, bits, lowest[steps - 1], best)
        head = int(best.argmin())
    for t in range(steps - 1, -1, -1):
        states[t] = _origin(targets[t], values, bits, lowest[t], head)
        head = states[t] >> bits


@njit(cache=True, nogil=True, boundscheck=False)
def _origin(
    target: NDArray[np.float32],
    values: NDArray[np.float32],
    bits: int,
    lowest: NDArray[np.float32],
    head: int,
) -> int:
    """The state that leads to a head at least cost."""
    cheapest = np.inf
    found = head
    for state in range(head, len(lowest) << bits, len(lowest)):
        cost = lowest[state >> bits]
        for v in range(len(values)):
            cost += (target[v] - values[v, state]) ** 2
        if cost < cheapest:
            cheapest = cost
            found = state
    return found


@njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "contract"}
)
def _advance(
    target: NDArray[np.float32],
    values: NDArray[np.float32],
    bits: int,
    lowest: NDArray[np.float32],
    best: NDArray[np.float32],
) -> None:
    """One step in the order of states: all states of a run share their head."""
    heads = len(lowest)
    length = min(1 << bits, heads)
    best[:] = np.inf
    for start in range(0, heads << bits, length):
        cost = lowest[start >> bits]
        reached = best[start % heads : start % heads + length]
        first, wanted = values[0, start : start + length], target[0]
        if len(values) == 1:
            for i in range(length):
                error = wanted - first[i]
                reached[i] = min(reached[i], cost + error * error)
        else:
            second, other = values[1, start : start + length], target[1]
            for i in range(length):
                error, more = wanted - first[i], other - second[i]
                reached[i] = min(reached[i], cost + error * error + more * more)


@njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "contract"}
)
def _advance_reordered(
    target: NDArray[np.float32],
    reordered: NDArray[np.float32],
    bits: int,
    lowest: NDArray[np.float32],
    best: NDArray[np.float32],
) -> None:
    """One step in the order of lower bits: a run goes through heads one by one.

    `best` has the heads that are reached by their own lower bits first.
    """
    heads, branches = len(lowest), 1 << bits
    length = heads >> bits
    best[:] = np.inf
    for tail in range(branches):
        reached = best[tail * length : (tail + 1) * length]
        values = reordered[0, tail * heads : (tail + 1) * heads]
        if len(reordered) == 2:
            others = reordered[1, tail * heads : (tail + 1) * heads]
            for a in range(0, heads, length):
                _reach_pairs(
                    reached, target[0], target[1],
                    values[a : a + length], others[a : a + length], lowest[a : a + length],
                )  # fmt: skip
            continue
        # Four at once, so that `reached` is read and written less often; two branches count twice.
        for branch in range(0, branches, 4):
            a = branch * length
            b = (branch + 1) % branches * length
            c = (branch + 2) % branches * length
            d = (branch + 3) % branches * length
            _reach(
                reached, target[0],
                values[a : a + length], values[b : b + length],
                values[c : c + length], values[d : d + length],
                lowest[a : a + length], lowest[b : b + length],
                lowest[c : c + length], lowest[d : d + length],
            )  # fmt: skip


@njit(inline="always")
def _reach(
    reached: NDArray[np.float32],
    wanted: np.float32,
    value_a: NDArray[np.float32],
    value_b: NDArray[np.float32],
    value_c: NDArray[np.float32],
    value_d: NDArray[np.float32],
    cost_a: NDArray[np.float32],
    cost_b: NDArray[np.float32],
    cost_c: NDArray[np.float32],
    cost_d: NDArray[np.float32],
) -> None:
    """The least of `reached` and of what four runs of states cost."""
    for i in range(len(reached)):
        a, b = wanted - value_a[i], wanted - value_b[i]
        c, d = wanted - value_c[i], wanted - value_d[i]
        low = min(cost_a[i] + a * a, cost_b[i] + b * b)
        other = min(cost_c[i] + c * c, cost_d[i] + d * d)
        reached[i] = min(min(reached[i], low), other)


@njit(inline="always")
def _reach_pairs(
    reached: NDArray[np.float32],
    wanted: np.float32,
    other: np.float32,
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    costs: NDArray[np.float32],
) -> None:
    """The least of `reached` and of what a run of states of pairs costs."""
    for i in range(len(reached)):
        error, more = wanted - first[i], other - second[i]
        reached[i] = min(reached[i], costs[i] + error * error + more * more)


@njit(cache=True, nogil=True, boundscheck=False)
def _restore_order(best: NDArray[np.float32], bits: int, lowest: NDArray[np.float32]) -> None:
    """From lower bits first to the order of heads: four neighbours are written at once."""
    branches = 1 << bits
    length = len(best) >> bits
    if branches < 4:
        for head in range(len(best)):
            lowest[head] = best[head % branches * length + head // branches]
        return
    for tail in range(0, branches, 4):
        start = tail * length
        a, b, c, d = (
            best[start : start + length],
            best[start + length : start + 2 * length],
            best[start + 2 * length : start + 3 * length],
            best[start + 3 * length : start + 4 * length],
        )
        for upper in range(length):
            head = upper * branches + tail
            lowest[head] = a[upper]
            lowest[head + 1] = b[upper]
            lowest[head + 2] = c[upper]
            lowest[head + 3] = d[upper]
