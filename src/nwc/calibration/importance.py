"""Importance levels of columns: by quantile as in the paper, or by water-filling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

QUANTILES = (0.9, 0.99, 0.999)
"""A column above the k-th quantile of diag H has level k + 1, the same for every tensor."""


FLOOR = 0.1
"""Multiple of mean d added to every d before water-filling.

The calibration text decides which inputs are quiet; other text may be louder there, and at low
rates a column that is left out altogether costs more than the quadratic loss says.
"""


def importance_levels(diagonal: Float[Tensor, " n"], levels: int) -> UInt8[Tensor, " n"]:
    """Level of every column: top 0.1 % -> 3, 1 % -> 2, 10 % -> 1, the rest 0.

    Args:
        diagonal: diag H.
        levels: K of the codec; columns of a higher level get K - 1.

    Example:
        >>> importance_levels(torch.arange(20.0), 4).tolist()[-3:]
        [0, 1, 3]
    """
    # Ranks instead of quantile values: ties and huge outliers cannot shift a threshold.
    n = len(diagonal)
    rank = torch.empty(n, dtype=torch.float64)
    rank[diagonal.argsort(stable=True)] = torch.arange(n, dtype=torch.float64)
    level = torch.zeros(n, dtype=torch.uint8)
    for quantile in QUANTILES[: levels - 1]:
        level += (rank > quantile * (n - 1)).to(torch.uint8)
    return level


def waterfilled_levels(
    scales: Float[Tensor, " n"], d: Float[Tensor, " n"], levels: int
) -> UInt8[Tensor, " n"]:
    r"""Level of every column such that all contribute equally to the layer's loss.

    Under LDLQ the loss is :math:`\sum_k d_k |e_k|^2` with D of H = L^T D L. A column of scale s_k
    quantised with step :math:`s_k 2^{-c_k}` contributes in proportion to
    :math:`d_k s_k^2 2^{-2 c_k}`; at a given mean rate the sum is least when all are equal
    (reverse water-filling), c_k = log2(s_k sqrt(d_k)) up to a constant. Level j stands for an
    offset of c by j / 2.

    Args:
        scales: of the columns; 0 for dead ones, which get level 0.
        d: diagonal of D.
        levels: how many there are; the span above level 0 is half as many octaves, and columns
            that would fall below it have level 0.

    Example:
        >>> waterfilled_levels(torch.tensor([1.0, 2.0, 4.0]), torch.ones(3), 16).tolist()
        [0, 2, 4]
    """
    result = torch.zeros(len(scales), dtype=torch.uint8)
    alive = scales > 0
    if levels > 1 and alive.any():
        s, d = scales[alive].double(), d[alive].double()
        wanted = 2 * torch.log2(s) + torch.log2(d + FLOOR * d.mean())
        level = (wanted - wanted.max()).round().clamp_min(1 - levels)
        result[alive] = (level - level.min()).to(torch.uint8)
    return result
