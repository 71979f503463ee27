r"""Round to nearest: the simplest thing that works.

A group of neighbours in a row shares a scale and a zero point,

.. math:: q = \mathrm{clip}(\lfloor w / s \rceil + z, 0, 2^b - 1), \quad \hat w = s (q - z)

with s = (max - min) / (2^b - 1) and z = round(-min / s), the range widened to hold 0. What most
tools call 4 bits is 4.156 with scales in FP16 and zero points in as many bits as a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from nwc.coding.rate import BitBudget
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting, grouped_budget

if TYPE_CHECKING:
    from jaxtyping import Float

GROUP = 128


class Grid(NamedTuple):
    """A uniform grid for every row of a group of columns.

    Args:
        scale: [m, 1], rounded to FP16.
        zero: [m, 1], integers.
        last: largest code, 2^b - 1.
    """

    scale: Tensor
    zero: Tensor
    last: int

    @classmethod
    def of(
        cls,
        W: Float[Tensor, "m group"],
        bits: int,
        *,
        shrink: float | Float[Tensor, "m 1"] = 1.0,
    ) -> Grid:
        """The grid that spans the values of every row.

        Args:
            W: the values.
            bits: of a code.
            shrink: factor of the range, for methods that clip.

        Example:
            >>> grid = Grid.of(torch.tensor([[-1.0, 0.0, 2.0]]), 2)
            >>> grid.round(torch.tensor([[-1.0, 0.1, 2.0]])).tolist()
            [[-1.0, 0.0, 2.0]]
        """
        last = 2**bits - 1
        low = W.amin(1, keepdim=True).clamp_max(0) * shrink
        high = W.amax(1, keepdim=True).clamp_min(0) * shrink
        scale = ((high - low) / last).half().float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls(scale, (-low / scale).round().clamp(0, last), last)

    def round(self, W: Float[Tensor, "m columns"]) -> Float[Tensor, "m columns"]:
        """The nearest values of the grid."""
        codes = ((W / self.scale).round() + self.zero).clamp(0, self.last)
        return (codes - self.zero) * self.scale


class RTN(DenseMethod):
    """See the module."""

    name = "rtn"
    settings: ClassVar = {
        b + (16 + b) / GROUP: Setting(f"{b} bits in groups of {GROUP}", b) for b in range(2, 9)
    }

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`; H plays no part."""
        bits = self.setting.bits
        return [Quantised(round_in_groups(x.W, bits), budget_of(x.W, bits)) for x in layers]


def budget_of(W: Float[Tensor, "m n"], bits: int) -> BitBudget:
    """Codes, scales and zero points of a matrix."""
    return grouped_budget(W.shape[0], W.shape[1], bits, group=GROUP, zero_bits=bits)


def round_in_groups(
    W: Float[Tensor, "m n"], bits: int, group: int = GROUP
) -> Float[Tensor, "m n"]:
    """Every group of a row on the grid that spans it."""
    parts = [Grid.of(part, bits).round(part) for part in W.split(group, dim=1)]
    return torch.cat(parts, dim=1)
