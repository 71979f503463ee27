r"""Gradient descent over orthogonal matrices (Li, Li and Todorovic, ICLR 2020: Cayley SGD).

The gradient G of a loss at X, with momentum M, becomes a skew-symmetric direction W, and

.. math:: X \leftarrow (I - \tfrac{\alpha}{2} W)^{-1} (I + \tfrac{\alpha}{2} W) X

stays orthogonal for every step size. Their Algorithm 1 solves for X by two rounds of a fixed-point
iteration; the exact solution costs little at the sizes of a residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_LONGEST = 1.0
"""Bound of alpha ||W||: their 2 q with q = 0.5."""


class CayleySGD:
    """Momentum and step of a few orthogonal matrices.

    Args:
        matrices: orthogonal; `step` changes them in place.
        momentum: share of the direction that is kept.
    """

    def __init__(self, matrices: list[Float[Tensor, "n n"]], momentum: float = 0.9) -> None:
        self.matrices = matrices
        self.momentum = momentum
        self._moving = [torch.zeros_like(x) for x in matrices]

    @torch.no_grad()
    def step(self, gradients: list[Float[Tensor, "n n"]], rate: float) -> None:
        """Move against the gradients.

        Args:
            gradients: of the loss by every matrix.
            rate: step size, less where it would turn further than `_LONGEST`.
        """
        for i, (X, G) in enumerate(zip(self.matrices, gradients, strict=True)):
            W = direction(X, self.momentum * self._moving[i] - G)
            self._moving[i] = W @ X
            X.copy_(turned(X, W, min(rate, _LONGEST / (float(W.norm()) + 1e-8))))


def direction(X: Float[Tensor, "n n"], M: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The skew-symmetric W for which W X is M brought into the tangent space at X."""
    half = M @ X.T - 0.5 * X @ (X.T @ M @ X.T)
    return half - half.T


def turned(X: Float[Tensor, "n n"], W: Float[Tensor, "n n"], alpha: float) -> Float[Tensor, "n n"]:
    """The Cayley transform of alpha W times X, solved in FP64.

    Example:
        >>> W = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> Y = turned(torch.eye(2), W, 1e6)  # half a turn, all but
        >>> torch.allclose(Y, -torch.eye(2), atol=1e-4)
        True
    """
    eye = torch.eye(len(X), dtype=torch.float64, device=X.device)
    half = 0.5 * alpha * W.double()
    return torch.linalg.solve(eye - half, (eye + half) @ X.double()).to(X.dtype)
