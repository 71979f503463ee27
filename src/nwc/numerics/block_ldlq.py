r"""LDLQ by blocks of columns, for quantisers of vectors (QuIP#, Tseng et al. 2024, Sec. 4.1).

H = L^T D L with L unit block lower triangular: g x g blocks, identities on the diagonal. Block k
of columns is quantised after correction by the errors before it,

.. math:: \tilde W_k = W_k + (W_{<k} - \hat W_{<k}) A_k, \quad A = L^T - I

which leaves tr(E H E^T) = tr(F D F^T) with F the error of quantising. With g = 1 it is `ldlq`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nwc.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float


def block_upper(upper: Float[Tensor, "n n"], size: int) -> Float[Tensor, "n n"]:
    """L^T of the block factorisation.

    Args:
        upper: L^T of `ldlq.ldl`, unit upper triangular.
        size: g.

    Raises:
        ConfigError: blocks of g columns do not fill H.

    Example:
        >>> block_upper(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if len(upper) % size:
        raise ConfigError(f"{len(upper)} columns, wanted a multiple of {size}; pad them")
    found = torch.zeros_like(upper)
    for start in range(0, len(upper), size):
        own = slice(start, start + size)
        found[: start + size, own] = torch.linalg.solve_triangular(
            upper[own, own], upper[: start + size, own],
            upper=True, left=False, unitriangular=True,
        )  # fmt: skip
    return found


def block_feedback(
    columns: Float[Tensor, "n m"],
    upper: Float[Tensor, "n n"],
    quantise: Callable[[Float[Tensor, "g m"]], Float[Tensor, "g m"]],
    size: int,
    group: int = 128,
) -> None:
    """Quantise blocks of columns in order, each corrected by the errors before it.

    Args:
        columns: W^T; overwritten with the errors E^T.
        upper: of `block_upper`.
        quantise: corrected block -> its reconstruction.
        size: g.
        group: columns after which all columns to come are corrected by one matrix product; raised
            to a multiple of g.
    """
    n = len(columns)
    group = -(-group // size) * size
    corrected = columns.clone()
    for start in range(0, n, group):
        stop = min(start + group, n)
        for k in range(start, stop, size):
            own = slice(k, k + size)
            target = corrected[own] + upper[start:k, own].T @ columns[start:k]
            columns[own] -= quantise(target)
        if stop < n:
            corrected[stop:] += upper[start:stop, stop:].T @ columns[start:stop]


def block_sweep(
    errors: Float[Tensor, "n m"],
    columns: Float[Tensor, "n m"],
    H: Float[Tensor, "n n"],
    quantise: Callable[[Float[Tensor, "g m"]], Float[Tensor, "g m"]],
    size: int,
    group: int = 128,
) -> None:
    r"""Quantise every block once more, now that the errors of all others are known.

    With the others fixed, tr(E H E^T) is least for :math:`E_k = -\sum_{j \ne k} E_j H_{jk}
    H_{kk}^{-1}`. A row of a block that would be worse for it, the quantiser being coarse, stays.

    Args:
        errors: E^T, changed in place.
        columns: W^T.
        H: the Hessian, positive definite.
        quantise: block -> its reconstruction.
        size: g.
        group: columns whose gradient is found by one matrix product; raised to a multiple of g.
    """
    n = len(errors)
    group = -(-group // size) * size
    for start in range(0, n, group):
        stop = min(start + group, n)
        pull = H[start:stop] @ errors
        for k in range(start, stop, size):
            own = slice(k, k + size)
            wanted = errors[own] - torch.linalg.solve(H[own, own], pull[k - start :][:size])
            change = columns[own] - quantise(columns[own] - wanted) - errors[own]
            # What moving by `change` adds to the loss: 2 (E_k - wanted) + change, in H_kk.
            added = (change * (H[own, own] @ (2 * (errors[own] - wanted) + change))).sum(0)
            change *= added < 0
            errors[own] += change
            pull += H[start:stop, own] @ change
