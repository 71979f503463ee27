r"""Entropy-coded trellis-coded quantisation, and scalar quantisation as its case of one state.

A column is decided at once. In every lane the path through the trellis is taken that minimises

.. math:: \sum_t w (u_t - v(n_t))^2 + \lambda \, \mathrm{bits}(n_t)

with u the weight in units of its step, n the integer, v(n) the value that it is decoded to and
bits(n) the length of its symbol's code under the codec's prior. With one state nothing is carried
from one weight to the next, and what is left is rate-distortion optimised rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nwc.coding.trellis import Trellis
from nwc.kernels import viterbi_numba
from nwc.kernels.viterbi_numba import FREE

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANES = 16


@dataclass(frozen=True, kw_only=True)
class Segments:
    """How the stacked rows of a column are cut: one piece for each layer and strip of tiles.

    Lanes start anew in each.

    Args:
        starts: [segments + 1], first chunk of each, and the end.
        layers: [segments], which layer's codebook it uses.
    """

    starts: NDArray[np.int64]
    layers: NDArray[np.int64]

    @classmethod
    def of(cls, chunks: list[int], longest: list[int]) -> Segments:
        """Cut layers of so many chunks into pieces of at most `longest`.

        Example:
            >>> Segments.of([3, 5], [3, 2]).starts.tolist()
            [0, 3, 5, 7, 8]
        """
        starts, layers, at = [0], [], 0
        for layer, (count, most) in enumerate(zip(chunks, longest, strict=True)):
            for start in range(0, count, most):
                starts.append(at + min(start + most, count))
                layers.append(layer)
            at += count
        return cls(
            starts=np.array(starts, dtype=np.int64), layers=np.array(layers, dtype=np.int64)
        )

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """What integers of each layer and class are decoded to, and what they cost.

    Args:
        steps: [layers, classes], distance of the values at high rate.
        values: [layers, classes, integers], what first, first + 1, ... are decoded to; a multiple
            of the scales of column and row.
        first: smallest integer.
        costs: [layers, classes, parities, symbols], lambda times the code length of symbols
            first_symbol, ...; symbols beyond cost as much as the ones at the ends.
        first_symbol: smallest symbol with a cost of its own.
        trellis: None for scalar quantisation.
    """

    steps: NDArray[np.float32]
    values: NDArray[np.float32]
    first: int
    costs: NDArray[np.float64]
    first_symbol: int
    trellis: Trellis | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A stacked column and how it is to be quantised.

    Args:
        targets: [rows].
        scales: [segments], of the column in each layer.
        row_scales: [rows]; 0 where a row is padding or dead.
        classes: [segments], of the column in each layer.
        row_classes: [rows].
        weights: [segments], what a squared error in units of the step costs.
        path: [segments, 16], state of every lane before the column.
        ends: [segments, 16], the state after it, or `FREE`.
    """

    targets: NDArray[np.float32]
    scales: NDArray[np.float32]
    row_scales: NDArray[np.float32]
    classes: NDArray[np.int64]
    row_classes: NDArray[np.uint8]
    weights: NDArray[np.float64]
    path: NDArray[np.int8]
    ends: NDArray[np.int8]


@dataclass(frozen=True)
class Decision:
    """What a column is coded as.

    Args:
        integers: [rows].
        restored: [rows], the weights that they are decoded to.
        path: [segments, 16], state of every lane after the column.
    """

    integers: NDArray[np.int16]
    restored: NDArray[np.float32]
    path: NDArray[np.int8]


def decide(column: Column, segments: Segments, codebook: Codebook) -> Decision:
    """The best path of every lane."""
    trellis = codebook.trellis or Trellis(1, 0, 0)
    path = column.path.copy()
    integers = np.empty(len(column.targets), dtype=np.int16)
    restored = np.empty(len(column.targets), dtype=np.float32)
    viterbi_numba.decide(
        column.targets, column.scales, column.row_scales, column.classes, column.row_classes,
        segments.starts, segments.layers, column.weights,
        codebook.steps, codebook.values, codebook.first, codebook.costs, codebook.first_symbol,
        *trellis, path, column.ends, integers, restored,
    )  # fmt: skip
    return Decision(integers, restored, path)


def restore(
    integers: NDArray[np.int16], column: Column, segments: Segments, codebook: Codebook
) -> NDArray[np.float32]:
    """What the integers [rows] of a column are decoded to."""
    segment = np.repeat(np.arange(len(segments)), LANES * np.diff(segments.starts))
    group = column.classes[segment] + column.row_classes
    values = codebook.values[segments.layers[segment], group, integers - np.int64(codebook.first)]
    return values * column.scales[segment] * column.row_scales


def price(
    integers: NDArray[np.int16], column: Column, segments: Segments, codebook: Codebook
) -> NDArray[np.float64]:
    """Distortion plus rate of the integers [rows] of a column, for every lane [segments, 16]."""
    lengths = np.diff(segments.starts)
    segment = np.repeat(np.arange(len(segments)), LANES * lengths)
    layer, group = segments.layers[segment], column.classes[segment] + column.row_classes
    unit = codebook.steps[layer, group]
    step = column.scales[segment] * column.row_scales * unit
    u = np.divide(column.targets, step, out=np.zeros_like(step), where=step > 0)
    value = codebook.values[layer, group, integers - np.int64(codebook.first)] / unit
    weight = np.where(step > 0, column.weights[segment], 0.0)
    odd = 0 if codebook.trellis is None else 1
    symbol = (integers >> odd) - np.int64(codebook.first_symbol)
    symbol = symbol.clip(0, codebook.costs.shape[3] - 1)
    each = weight * np.square((u - value).astype(np.float64))
    each += codebook.costs[layer, group, integers & odd, symbol]
    per_chunk = each.reshape(-1, LANES)
    return np.add.reduceat(per_chunk, segments.starts[:-1], axis=0)


def decide_plainly(column: Column, segments: Segments, codebook: Codebook) -> Decision:
    """`decide` written plainly: the oracle of the kernel."""
    trellis = codebook.trellis or Trellis(1, 0, 0)
    path = column.path.copy()
    integers = np.zeros(len(column.targets), dtype=np.int16)
    restored = np.zeros(len(column.targets), dtype=np.float32)
    for segment, lane in np.ndindex(len(segments), LANES):
        chunks = range(segments.starts[segment], segments.starts[segment + 1])
        ways: dict[int, tuple[float, list[int]]] = {int(path[segment, lane]): (0.0, [])}
        for chunk in chunks:
            options = _options(column, segments, codebook, segment, LANES * chunk + lane)
            reached: dict[int, tuple[float, list[int]]] = {}
            for state, (total, taken) in ways.items():
                for n, cost in options.items():
                    if codebook.trellis is not None and (n ^ state) & 1:
                        continue
                    symbol = n if codebook.trellis is None else n >> 1
                    to = trellis.step(state, symbol) if codebook.trellis is not None else 0
                    if total + cost < reached.get(to, (math.inf, []))[0]:
                        reached[to] = total + cost, [*taken, n]
            ways = reached
        end = int(column.ends[segment, lane])
        state = min(ways, key=lambda s: ways[s][0]) if end == FREE else end
        path[segment, lane] = state
        for chunk, n in zip(chunks, ways[state][1], strict=True):
            row = LANES * chunk + lane
            group = column.classes[segment] + column.row_classes[row]
            value = codebook.values[segments.layers[segment], group, n - codebook.first]
            integers[row] = n
            restored[row] = value * column.scales[segment] * column.row_scales[row]
    return Decision(integers, restored, path)


def _options(
    column: Column, segments: Segments, codebook: Codebook, segment: int, row: int
) -> dict[int, float]:
    """Cost of the integers near a weight: the two nearest of every subset of the trellis."""
    layer = segments.layers[segment]
    group = column.classes[segment] + column.row_classes[row]
    unit = codebook.steps[layer, group]
    step = column.scales[segment] * column.row_scales[row] * unit
    u = column.targets[row] / step if step > 0 else np.float32(0)
    odd = 0 if codebook.trellis is None else 1
    last = codebook.first + codebook.values.shape[2] - 1
    place = min(max(float(u) * (1 + odd), codebook.first + 8.0), last - 8.0)
    spacing = 4 if odd else 1
    costs = {}
    for residue in range(spacing):
        low = residue + spacing * math.floor((place - residue) / spacing)
        for n in (low, low + spacing):
            error = float(u - codebook.values[layer, group, n - codebook.first] / unit)
            lengths = codebook.costs[layer, group, residue & odd]
            symbol = min(max((n >> odd) - codebook.first_symbol, 0), len(lengths) - 1)
            weight = column.weights[segment] if step > 0 else 0.0
            costs[n] = weight * error * error + float(lengths[symbol])
    return costs
