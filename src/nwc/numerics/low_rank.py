r"""The best matrix of low rank under a Hessian.

With any S such that S S^T = H, the loss tr(E H E^T) of an error E is the square of the norm of
E S. So the best approximation of rank r of W is the truncated singular value decomposition of W S,
with S undone (Eckart, Young 1936), and its loss the sum of the squared singular values dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nwc.numerics.ldlq import DAMPING_LADDER, ldl

if TYPE_CHECKING:
    from jaxtyping import Float

_DOUBLE_UP_TO = 4096
"""Columns up to which roots are found in FP64, as in `ldlq`."""


class Root(NamedTuple):
    """S with S S^T = H.

    Args:
        S: [n, n].
        inverse: [n, n]; on what S does not reach, zero.
    """

    S: Tensor
    inverse: Tensor


def cholesky_root(H: Float[Tensor, "n n"]) -> Root:
    """The triangular root of H, damped as far as the decomposition needs.

    Example:
        >>> X = torch.randn(50, 4)
        >>> root = cholesky_root(X.T @ X)
        >>> bool(torch.allclose(root.S @ root.inverse, torch.eye(4), atol=1e-5))
        True
    """
    factor = ldl(H.cpu())
    # H = L^T D L, so S = L^T D^1/2.
    dtype = _precision(H)
    S = factor.upper.to(dtype) * factor.d.to(dtype).sqrt()
    eye = torch.eye(len(H), dtype=dtype)
    return Root(S.float(), torch.linalg.solve_triangular(S, eye, upper=True).float())


def eigen_root(H: Float[Tensor, "n n"], damping: float = DAMPING_LADDER[0]) -> Root:
    """The root U sqrt(V) of H = U V U^T, which needs no positive definite H.

    Args:
        H: the Hessian.
        damping: multiple of mean(diag H) added to the diagonal.

    Example:
        >>> root = eigen_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), damping=0.0)
        >>> (root.S @ root.S.T).tolist(), (root.S @ root.inverse).tolist()
        ([[4.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    """
    H = H.cpu().to(_precision(H))
    values, U = torch.linalg.eigh(H)
    values = values.clamp_min(0) + damping * H.diagonal().mean()
    # What is smaller than the rounding error of the largest is not there.
    tiny = values.amax() * len(H) * torch.finfo(values.dtype).eps
    sizes = torch.where(values > tiny, values, 0.0).sqrt()
    inverse = torch.where(sizes > 0, 1 / sizes, 0.0)
    return Root((U * sizes).float(), (inverse[:, None] * U.T).float())


class LowRank(NamedTuple):
    """A matrix of low rank in two factors of equal size.

    Args:
        left: [m, r].
        right: [r, n].
        dropped: singular values that were left out; the root of the sum of their squares is the
            root of the loss.
    """

    left: Tensor
    right: Tensor
    dropped: Tensor


def best_low_rank(W: Float[Tensor, "m n"], rank: int, root: Root | None = None) -> LowRank:
    """The best approximation of W.

    Args:
        W: the matrix.
        rank: at most so much.
        root: of the Hessian of its input; None for the identity.

    Example:
        >>> found = best_low_rank(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
        >>> (found.left @ found.right).round(decimals=4).diag().tolist(), found.dropped.tolist()
        ([3.0, 2.0, 0.0], [1.0])
    """
    U, sizes, V = torch.linalg.svd(W if root is None else W @ root.S, full_matrices=False)
    left = U[:, :rank] * sizes[:rank].sqrt()
    right = sizes[:rank, None].sqrt() * V[:rank]
    if root is not None:
        right = right @ root.inverse
    # Both factors of a rank in the same range, so that neither leaves that of FP16.
    share = (_peak(right, 1) / _peak(left, 0)).sqrt()
    return LowRank(left * share, right / share[:, None], sizes[rank:])


def singular_values(W: Float[Tensor, "m n"], root: Root | None = None) -> Float[Tensor, " k"]:
    """Singular values of W S, largest first."""
    return torch.linalg.svdvals(W if root is None else W @ root.S)


def _peak(x: Tensor, dim: int) -> Tensor:
    peak = x.abs().amax(dim)
    return torch.where(peak > 0, peak, torch.ones_like(peak))


def _precision(H: Tensor) -> torch.dtype:
    return torch.float64 if len(H) <= _DOUBLE_UP_TO else torch.float32
