"""Scalar quantisers of a sample: uniform, Lloyd-Max, entropy-constrained."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64


class Quantised(NamedTuple):
    """What a scalar quantiser makes of a sample.

    Args:
        indices: [samples], which value each is decoded to; counted from 0.
        restored: [samples], those values.
    """

    indices: Int64[np.ndarray, " samples"]
    restored: Float64[np.ndarray, " samples"]


def uniform(x: Float[np.ndarray, " samples"], step: float) -> Quantised:
    """Round to multiples of the step.

    Example:
        >>> uniform(np.array([-0.6, 0.1, 0.8]), 0.5).restored.tolist()
        [-0.5, 0.0, 1.0]
    """
    integers = np.rint(x.astype(np.float64) / step)
    return Quantised((integers - integers.min()).astype(np.int64), integers * step)


def entropy(indices: Int64[np.ndarray, " samples"]) -> float:
    """Entropy in bits per sample of what occurs: an ideal coder with a free table.

    Example:
        >>> entropy(np.array([0, 1, 2, 3]))
        2.0
    """
    counts = np.bincount(indices)
    counts = counts[counts > 0]
    return float((counts * np.log2(len(indices) / counts)).sum() / len(indices))


def lloyd_max(
    x: Float[np.ndarray, " samples"], levels: int, *, tolerance: float = 1e-6, limit: int = 5000
) -> Float64[np.ndarray, " levels"]:
    """The values of least mean squared error, ascending (Lloyd 1957, Max 1960).

    Every value is the mean of the samples nearest to it. Starts at the optimum for many levels,
    a density of values in proportion to the cube root of the sample's (Panter and Dite 1951).

    Args:
        x: the sample that the values are made for.
        levels: their number.
        tolerance: relative fall of the error between two steps at which to stop.
        limit: of steps.

    Raises:
        ConfigError: fewer samples than values.
    """
    if not 1 <= levels <= len(x):
        raise ConfigError(f"{levels} levels for {len(x)} samples, wanted 1 to as many as samples")
    ordered = np.sort(x.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    values = _cube_root_start(ordered, levels)
    power, before = float(np.square(ordered).sum()), np.inf
    for _ in range(limit):
        cuts = np.searchsorted(ordered, (values[1:] + values[:-1]) / 2)
        edges = np.concatenate([[0], cuts, [len(x)]])
        counts, parts = np.diff(edges), np.diff(sums[edges])
        means = np.divide(parts, counts, out=values.copy(), where=counts > 0)
        error = power - 2 * float(values @ parts) + float(np.square(values) @ counts)
        values = np.sort(means)
        if before - error <= tolerance * error:
            break
        before = error
    return values


def _cube_root_start(ordered: Float64[np.ndarray, " samples"], levels: int) -> np.ndarray:
    quantiles = np.interp(
        np.linspace(0, 1, min(4 * levels, len(ordered)) + 1),
        np.linspace(0, 1, len(ordered)),
        ordered,
    )
    # The same share of the sample lies between any two quantiles: density ~ 1 / width.
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(np.diff(quantiles) ** 2))])
    return np.interp((np.arange(levels) + 0.5) / levels * mass[-1], mass, quantiles)


def nearest(x: Float[np.ndarray, " samples"], values: Float64[np.ndarray, " levels"]) -> Quantised:
    """Decode every sample to the nearest of ascending values."""
    indices = np.searchsorted((values[1:] + values[:-1]) / 2, x)
    return Quantised(indices, values[indices])


def entropy_constrained(
    x: Float[np.ndarray, " samples"], step: float, *, rate_weight: float = 0.1, rounds: int = 20
) -> Quantised:
    r"""Scalar quantisation of least distortion plus rate (Chou, Lookabaugh and Gray 1989).

    .. math:: \sum_i (x_i - v(n_i))^2 + \lambda \, \mathrm{bits}(n_i)

    with v the mean of the samples decoded to it and bits the ideal code length. Starts from
    rounding to multiples of the step, which decides about how many values there are.

    Args:
        x: the sample.
        step: distance of the values at the start.
        rate_weight: lambda in squared steps. At high rates the slope of R(D) asks for
            step^2 (ln 2) / 6 = 0.116 step^2.
        rounds: of deciding and measuring again.
    """
    ordered = np.sort(x.astype(np.float64))
    rank = np.empty(len(x), dtype=np.int64)
    rank[np.argsort(x, kind="stable")] = np.arange(len(x))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    indices = uniform(ordered, step).indices
    edges = np.flatnonzero(np.diff(indices, prepend=-1, append=indices[-1] + 1))
    for _ in range(rounds):
        counts = np.diff(edges)
        values = np.diff(sums[edges]) / counts
        lengths = np.log2(len(x) / counts) * rate_weight * step * step
        edges = _cheapest_cells(values, lengths, ordered)
    counts = np.diff(edges)
    values = np.diff(sums[edges]) / counts
    indices = np.repeat(np.arange(len(counts)), counts)[rank]
    return Quantised(indices, values[indices])


def _cheapest_cells(
    values: np.ndarray, lengths: np.ndarray, ordered: np.ndarray
) -> Int64[np.ndarray, " cells+1"]:
    """Edges in the ordered sample of the cells in which each value is cheapest; no empty ones.

    Cost minus x^2 is a line in x for each value: cells are the pieces of the lower envelope.
    """
    hull: list[int] = []
    cuts: list[float] = []
    for i, value in enumerate(values.tolist()):
        height = value * value + lengths[i]
        while hull:
            j = hull[-1]
            cut = (height - values[j] ** 2 - lengths[j]) / (2 * (value - values[j]))
            if not cuts or cut > cuts[-1]:
                break
            hull.pop()
            cuts.pop()
        if hull:
            cuts.append(float(cut))
        hull.append(i)
    edges = np.searchsorted(ordered, np.array(cuts))
    return np.unique(np.concatenate([[0], edges, [len(ordered)]]))
