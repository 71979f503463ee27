r"""What a source costs at least: rate-distortion functions for the squared error.

With s > 0 the slope and K(x - y) = exp(-s (x - y)^2), a point of R(D) is found from the output
distribution q that minimises :math:`-\sum_x p(x) \log \sum_y q(y) K(x - y)` (Blahut 1972, Arimoto
1972). On a grid both sums are convolutions with a kernel a few deviations wide, so that a fine
grid costs little.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float64

_REACH = 7.0
"""Where the kernel ends, in its deviations."""


def gaussian_rate(mse: float, variance: float = 1.0) -> float:
    """R(D) in bits of a Gaussian (Shannon 1959), the most that any source of its variance needs.

    Example:
        >>> gaussian_rate(0.0625)
        2.0
    """
    return max(0.0, 0.5 * math.log2(variance / mse))


def shannon_lower_bound(entropy: float, mse: float) -> float:
    """h(X) - log2(2 pi e D) / 2: below every R(D), and what it tends to at high rate.

    Args:
        entropy: differential, in bits.
        mse: D.
    """
    return entropy - 0.5 * math.log2(2 * math.pi * math.e * mse)


def laplace_entropy(variance: float = 1.0) -> float:
    """Differential entropy in bits of the Laplace distribution."""
    return math.log2(2 * math.e * math.sqrt(variance / 2))


class RatePoint(NamedTuple):
    """A point of a rate-distortion function.

    Args:
        rate: bits per sample.
        mse: D.
        slack: by how much R(D) may lie lower, in bits.
    """

    rate: float
    mse: float
    slack: float


def blahut_arimoto(
    p: Float64[np.ndarray, " grid"],
    spacing: float,
    slope: float,
    *,
    rounds: int = 400,
    tolerance: float = 1e-4,
) -> RatePoint:
    r"""The point of R(D) at which :math:`dR/dD = -s` in nats.

    Args:
        p: probabilities of the source on an even grid, which is also that of the output.
        spacing: of the grid; at most 1 / sqrt(2 s), the deviation of the kernel.
        slope: s > 0.
        rounds: of the algorithm at most.
        tolerance: slack in bits at which to stop.

    Raises:
        ConfigError: the grid is too coarse for the slope, or p is not a distribution.
    """
    width = 1 / math.sqrt(2 * slope)
    if spacing > width:
        raise ConfigError(f"spacing {spacing} of the grid exceeds {width}; make the grid finer")
    if p.min() < 0 or abs(p.sum() - 1) > 1e-6:
        raise ConfigError(
            f"probabilities sum to {p.sum()} with smallest {p.min()}, wanted 1 and 0"
        )
    reach = min(math.ceil(_REACH * width / spacing), (len(p) - 1) // 2)
    distance = (np.arange(-reach, reach + 1) * spacing) ** 2
    kernel = np.exp(-slope * distance)
    q = np.convolve(p, kernel, mode="same")
    q /= q.sum()
    tiny = np.finfo(np.float64).tiny
    rate = mse = slack = math.inf
    for step in range(rounds):
        covered = np.convolve(q, kernel, mode="same") + tiny
        ratio = np.convolve(p / covered, kernel, mode="same")
        if step % 20 == 19 or step == rounds - 1:
            mse = float((p / covered) @ np.convolve(q, kernel * distance, mode="same"))
            # The output occurs `ratio` times as often as q says. At this slope no test channel
            # gets below `value` by more than the log of the largest ratio (Blahut, Theorem 6).
            joint = q * ratio
            value = -slope * mse - float(p @ np.log(covered))
            rate = (value - float((joint * np.log(ratio + tiny)).sum())) / math.log(2)
            slack = (math.log(float(ratio.max())) + rate * math.log(2) - value) / math.log(2)
            if slack < tolerance:
                break
        q = q * ratio
        q /= q.sum()
    return RatePoint(rate, mse, slack)


class RateCurve(NamedTuple):
    """R(D) at several points.

    Args:
        rates: bits per sample, ascending.
        log2_mse: log2 D, descending.
        slack: by how much R(D) may lie lower at each point, in bits.
    """

    rates: Float64[np.ndarray, " points"]
    log2_mse: Float64[np.ndarray, " points"]
    slack: Float64[np.ndarray, " points"]

    def rate(self, mse: float) -> float:
        """R(D) between the points; NaN beyond them."""
        at = math.log2(mse)
        if not self.log2_mse[-1] <= at <= self.log2_mse[0]:
            return math.nan
        # Almost constant, unlike the rate itself.
        above = self.rates + 0.5 * self.log2_mse
        return float(np.interp(at, self.log2_mse[::-1], above[::-1])) - 0.5 * at


def rate_curve(
    probabilities: Callable[[float], Float64[np.ndarray, " grid"]],
    log2_mse: Float64[np.ndarray, " points"],
    *,
    fineness: float = 4.0,
    rounds: int = 400,
) -> RateCurve:
    """R(D) around the given errors.

    Args:
        probabilities: grid spacing -> probabilities of the source on such a grid.
        log2_mse: log2 of 1 / (2 s), which D equals where the Shannon lower bound is reached.
        fineness: points of the grid per deviation of the kernel.
        rounds: see `blahut_arimoto`.
    """
    found = []
    for each in np.sort(log2_mse)[::-1]:
        spacing = 2 ** (each / 2) / fineness
        point = blahut_arimoto(probabilities(spacing), spacing, 0.5 / 2.0**each, rounds=rounds)
        found.append(point)
    found.sort(key=lambda point: -point.mse)
    return RateCurve(
        np.array([point.rate for point in found]),
        np.log2([point.mse for point in found]),
        np.array([point.slack for point in found]),
    )


def histogram(x: Float64[np.ndarray, " samples"], spacing: float) -> Float64[np.ndarray, " grid"]:
    """Shares of a sample on a grid around 0.

    Example:
        >>> histogram(np.array([-1.1, 0.2, 0.9, 1.0]), 1.0).tolist()
        [0.25, 0.25, 0.5]
    """
    integers = np.rint(x / spacing).astype(np.int64)
    reach = int(np.abs(integers).max())
    return np.bincount(integers + reach, minlength=2 * reach + 1) / len(x)
