"""Vector quantisation: values found by k-means (Linde, Buzo and Gray 1980)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nwc.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

_BATCH = 2**22
"""Distances held at once."""


def nearest(
    x: Float[Tensor, "points d"], values: Float[Tensor, "k d"]
) -> Int64[Tensor, " points"]:
    """Which of the values is nearest to every point."""
    half = values.square().sum(1) / 2
    size = max(1, _BATCH // len(values))
    found = [torch.addmm(half, part, values.T, alpha=-1).argmin(1) for part in x.split(size)]
    return torch.cat(found)


def k_means(
    x: Float[Tensor, "points d"], start: Float[Tensor, "k d"], *, rounds: int = 20, seed: int = 0
) -> Float[Tensor, "k d"]:
    """Values of smaller mean squared error than those one starts from.

    A value that no point is nearest to moves beside one that many points are nearest to.

    Args:
        x: the sample that the values are made for.
        start: a first guess: points of the sample, or all vectors of scalar values.
        rounds: of assigning points and taking means.
        seed: of the values that move.

    Raises:
        ConfigError: fewer points than values.
    """
    count = len(start)
    if not 1 <= count <= len(x):
        raise ConfigError(f"{count} values for {len(x)} points, wanted 1 to as many as points")
    generator = torch.Generator().manual_seed(seed)
    values = start.to(x.dtype, copy=True)
    for _ in range(rounds):
        owner = nearest(x, values)
        sizes = torch.bincount(owner, minlength=count)
        sums = torch.zeros_like(values).index_add_(0, owner, x)
        values = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], values)
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            crowded = sizes.argsort(descending=True)[: len(empty)]
            away = torch.randn(len(empty), x.shape[1], generator=generator)
            values[empty] = values[crowded] + 1e-3 * x.std() * away
    return values
