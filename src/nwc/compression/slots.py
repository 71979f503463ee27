"""Where the matrices of a checkpoint lie in the parameters of a running model.

Most often a matrix is a parameter. Fused experts differ: the hub's files hold one matrix for each
expert and projection, transformers one parameter [experts, 2 I, H] for all gates and ups; GPT-OSS
holds such a parameter on disk too, transposed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A matrix W [m, n] inside a parameter.

    Args:
        parameter: path of the parameter in its block.
        expert: index of the first of three dimensions; None for a plain matrix.
        start: first row.
        rows: how many; None takes all that follow.
        transposed: the parameter holds W^T.

    Example:
        >>> import torch
        >>> fused = torch.arange(24.0).view(2, 4, 3)  # two experts, gate and up of two rows each
        >>> Slot(parameter="gate_up_proj", expert=1, start=2, rows=2).view(fused).tolist()
        [[18.0, 19.0, 20.0], [21.0, 22.0, 23.0]]
    """

    parameter: str
    expert: int | None = None
    start: int = 0
    rows: int | None = None
    transposed: bool = False

    def view(self, parameter: Tensor) -> Tensor:
        """W, sharing the memory of the parameter, or of anything else of its shape."""
        W = parameter if self.expert is None else parameter[self.expert]
        W = W.T if self.transposed else W
        return W[self.start :] if self.rows is None else W[self.start : self.start + self.rows]
