"""Importance levels of columns by quantile, as in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

QUANTILES = (0.9, 0.99, 0.999)
"""A column above the k-th quantile of diag H has level k + 1, the same for every tensor."""


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
