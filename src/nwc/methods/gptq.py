r"""GPTQ: round to nearest, every column corrected for the errors before it (Frantar et al., 2022).

With H^-1 = U^T U, U upper triangular, column j is rounded and its error handed on,

.. math:: e = (w_j - \hat w_j) / U_{jj}, \quad W_{:, j:} \leftarrow W_{:, j:} - e \, U_{j, j:}

Groups of 128 columns share a grid, made when their first column is reached. In order of
activations (largest diag H first) a group is what is neighbours in that order; the file then holds
the group of every column, 32 bits each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nwc.coding.rate import BitBudget
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting
from nwc.methods.rtn import GROUP, Grid, budget_of, round_in_groups
from nwc.numerics.ldlq import ldl

if TYPE_CHECKING:
    from jaxtyping import Float


class GPTQ(DenseMethod):
    """See the module; without H it rounds to nearest."""

    name = "gptq"
    act_order = False
    settings: ClassVar = {
        b + (16 + b) / GROUP: Setting(f"{b} bits in groups of {GROUP}", b) for b in range(2, 9)
    }

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`."""
        bits = self.setting.bits
        if H is None:
            return [Quantised(round_in_groups(x.W, bits), budget_of(x.W, bits)) for x in layers]
        order = torch.arange(len(H))
        if self.act_order:
            order = H.diagonal().cpu().argsort(descending=True, stable=True)
        rows = torch.cat([layer.W for layer in layers])[:, order]
        restored = torch.empty_like(rows)
        restored[:, order] = gptq(rows, H[order][:, order], bits)
        parts = restored.split([len(layer.W) for layer in layers])
        return [
            Quantised(part, self._budget(layer.W, bits))
            for part, layer in zip(parts, layers, strict=True)
        ]

    def _budget(self, W: Tensor, bits: int) -> BitBudget:
        return budget_of(W, bits) + BitBudget(levels=4 * W.shape[1] if self.act_order else 0)


class GPTQActOrder(GPTQ):
    """GPTQ in order of activations."""

    name = "gptq_act_order"
    act_order = True


def gptq(
    W: Float[Tensor, "m n"], H: Float[Tensor, "n n"], bits: int, group: int = GROUP
) -> Float[Tensor, "m n"]:
    """W on grids of so many bits, made group by group, with feedback.

    Args:
        W: the matrix.
        H: Hessian of its input.
        bits: of a code.
        group: columns that share a grid.
    """
    factor = ldl(H.cpu())
    # H = L^T D L: U = D^-1/2 L^-T, and U_j / U_jj is row j of L^-T.
    eye = torch.eye(len(H), dtype=torch.float64)
    spread = torch.linalg.solve_triangular(factor.upper.double(), eye, upper=True).float()
    W = W.clone()
    restored = torch.empty_like(W)
    for start in range(0, W.shape[1], group):
        stop = min(start + group, W.shape[1])
        grid = Grid.of(W[:, start:stop], bits)
        for j in range(start, stop):
            restored[:, j : j + 1] = grid.round(W[:, j : j + 1])
            error = W[:, j] - restored[:, j]
            # Columns of other groups wait for the whole block.
            W[:, j + 1 : stop] -= error[:, None] * spread[j, j + 1 : stop]
            W[:, j] = error
        W[:, stop:] -= W[:, start:stop] @ spread[start:stop, stop:]
    return restored
