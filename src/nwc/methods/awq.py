r"""AWQ: columns that matter are made larger before they are rounded (Lin et al., 2023, Sec. 3.2).

With s > 0 for every column, Q(W diag(s)) diag(s)^-1 rounds loud inputs more finely at the cost of
quiet ones in the same group (Eq. 2-5):

.. math:: s = s_x^a, \quad a^* = \arg\min_a \mathrm{tr}(E_a H E_a^T), \quad
   E_a = W - Q(W \, \mathrm{diag}(s)) \, \mathrm{diag}(s)^{-1}

over 20 values of a, each s divided by the geometric mean of its extremes. Then every group of a
row tries ten ranges down to 0.55 of its own and takes the one with the least output error of its
own inputs.

Readings. s_x is the mean of \|x\|; of H only the root mean square is known and stands in for it.
a = 0 is in the grid, and a row keeps its clipped ranges only where its whole error falls by them,
so that the result is never worse than rounding to nearest on the calibration text. AWQ's code
leaves queries and keys unclipped; here their rows decide like all others.

Bits are those of `rtn`: s is folded into what gives the layer its input (a norm, or the rows of v
and up), which is why layers that share an input share s. With grouped-query attention AWQ's code
cannot fold that of the output projection and leaves it at 1; here it is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised
from nwc.methods.rtn import GROUP, RTN, Grid, budget_of, round_in_groups

if TYPE_CHECKING:
    from jaxtyping import Float

EXPONENTS = torch.arange(20) / 20
RANGES = 1 - torch.arange(10) / 20
"""Of a group, as shares of its largest magnitude."""

_QUIETEST = 1e-4
"""Least s as a share of the largest: an input that is never on must not stop the search."""


class AWQ(DenseMethod):
    """See the module."""

    name = "awq"
    needs_calibration = True
    settings = RTN.settings

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`."""
        assert H is not None, "awq needs calibration"
        bits = self.setting.bits
        restored = awq(torch.cat([layer.W for layer in layers]), H.cpu(), bits)
        parts = restored.split([len(layer.W) for layer in layers])
        return [
            Quantised(part, budget_of(layer.W, bits))
            for part, layer in zip(parts, layers, strict=True)
        ]


def awq(
    W: Float[Tensor, "m n"], H: Float[Tensor, "n n"], bits: int, group: int = GROUP
) -> Float[Tensor, "m n"]:
    """W on grids of so many bits, its columns scaled, its ranges clipped.

    Args:
        W: matrices that share their input, one below the other.
        H: Hessian of the input.
        bits: of a code.
        group: columns that share a grid.
    """
    s = best_scales(W, H, bits, group)
    plain = round_in_groups(W * s, bits, group) / s
    clipped = round_clipped(W * s, H / s[:, None] / s, bits, group) / s
    better = _row_losses(W - clipped, H) < _row_losses(W - plain, H)
    return torch.where(better[:, None], clipped, plain)


def best_scales(
    W: Float[Tensor, "m n"], H: Float[Tensor, "n n"], bits: int, group: int = GROUP
) -> Float[Tensor, " n"]:
    """Factors of the columns with which rounding does least harm to the output."""
    loud = H.diagonal().clamp_min(0).sqrt()
    found, least = torch.ones_like(loud), float("inf")
    for a in EXPONENTS:
        s = loud**a
        s = s.clamp_min(_QUIETEST * float(s.max()))
        s = s / (s.max() * s.min()).sqrt()
        if not torch.isfinite(s).all():  # no input is ever on
            continue
        loss = float(_row_losses(W - round_in_groups(W * s, bits, group) / s, H).sum())
        if loss < least:
            found, least = s, loss
    return found


def round_clipped(
    W: Float[Tensor, "m n"], H: Float[Tensor, "n n"], bits: int, group: int = GROUP
) -> Float[Tensor, "m n"]:
    """Every group of a row on that grid with which its own inputs see the least error."""
    parts = []
    for start in range(0, W.shape[1], group):
        columns = slice(start, start + group)
        part, block = W[:, columns], H[columns, columns]
        peak = part.abs().amax(1, keepdim=True)
        best, least = part, torch.full((len(part),), float("inf"))
        for share in RANGES:
            inside = part.clamp(-share * peak, share * peak)
            rounded = Grid.of(inside, bits).round(inside)
            loss = _row_losses(part - rounded, block)
            best = torch.where((loss < least)[:, None], rounded, best)
            least = torch.minimum(least, loss)
        parts.append(best)
    return torch.cat(parts, dim=1)


def _row_losses(E: Float[Tensor, "m n"], H: Float[Tensor, "n n"]) -> Float[Tensor, " m"]:
    return ((E @ H) * E).sum(1)
