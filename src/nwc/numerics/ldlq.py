r"""LDLQ: column-by-column quantisation with linear feedback (paper Sec. 3.3, Eq. 6).

With H = L^T D L, L unit lower triangular, the layer's loss tr(E H E^T) of the error E = W - W_hat
equals tr(F D F^T), F = E L^T: column k of F is the error of quantising

.. math:: \tilde w_k = w_k + (W_{1:k-1} - \hat W_{1:k-1}) a_k, \quad a_k = (L^T - I)_{:, k}

`torch.linalg.cholesky` factors in the opposite order (H = L L^T), so H is flipped, factored and
flipped back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nwc.errors import CalibrationError

if TYPE_CHECKING:
    from jaxtyping import Float

DAMPING_LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Multiples of mean(diag H) added to the diagonal, tried until the factorisation succeeds."""

_DOUBLE_UP_TO = 4096
"""Columns up to which the factorisation runs in FP64; beyond, FP32 halves its memory."""


class LDL(NamedTuple):
    """H + damping = L^T D L.

    Args:
        upper: L^T [n, n], unit upper triangular.
        d: diagonal of D [n].
        damping: the multiple of mean(diag H) that was added.
    """

    upper: Tensor
    d: Tensor
    damping: float


def ldl(H: Float[Tensor, "n n"], ladder: tuple[float, ...] = DAMPING_LADDER) -> LDL:
    """Factor H in the paper's column order, climbing the damping ladder as needed.

    Raises:
        CalibrationError: H has non-finite entries, or no rung makes it positive definite.

    Example:
        >>> X = torch.randn(50, 4)
        >>> f = ldl(X.T @ X, (0.0,))
        >>> bool(torch.allclose(f.upper @ torch.diag(f.d) @ f.upper.T, X.T @ X, rtol=1e-4))
        True
    """
    n = len(H)
    H = H.to(torch.float64 if n <= _DOUBLE_UP_TO else torch.float32)
    mean = float(H.diagonal().mean())
    if not torch.isfinite(H).all():
        raise CalibrationError("the Hessian has non-finite entries; check the calibration text")
    for damping in ladder:
        flipped = H.flip(0, 1)
        flipped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        factor, failed = torch.linalg.cholesky_ex(flipped)
        del flipped  # wide layers: a copy of H less while the next ones are made
        if int(failed) == 0:
            upper = factor.flip(0, 1)
            del factor
            diagonal = upper.diagonal().clone()
            return LDL(upper.div_(diagonal).float(), diagonal.square().float(), damping)
    raise CalibrationError(
        f"the {n} x {n} Hessian stays indefinite with damping {ladder[-1]}; "
        "calibrate with more or other text"
    )


def feedback(
    columns: Float[Tensor, "n m"],
    upper: Float[Tensor, "n n"],
    quantise: Callable[[int, Float[Tensor, " m"]], Float[Tensor, " m"]],
    block: int = 128,
) -> None:
    """Quantise the columns of W in order, each corrected by the errors before it.

    Feedback inside a block of columns is one vector-matrix product a column; what a finished block
    owes to the columns after it is one matrix product.

    Args:
        columns: W^T; overwritten with the errors E^T.
        upper: L^T of `ldl`.
        quantise: (k, corrected column) -> its reconstruction.
        block: columns in a block.
    """
    n = len(columns)
    # E is measured against W itself, not against the corrected column.
    corrected = columns.clone()
    for start in range(0, n, block):
        stop = min(start + block, n)
        for k in range(start, stop):
            target = corrected[k]
            if k > start:
                target = target + upper[start:k, k] @ columns[start:k]
            columns[k] -= quantise(k, target)
        if stop < n:
            corrected[stop:] += upper[start:stop, stop:].T @ columns[start:stop]


def sweep(
    errors: Float[Tensor, "n m"],
    H: Float[Tensor, "n n"],
    improve: Callable[[int, Float[Tensor, " m"], Float[Tensor, " m"]], Float[Tensor, " m"]],
    block: int = 128,
) -> None:
    r"""Decide every column once more, now that the errors of all others are known.

    With the others fixed, tr(E H E^T) is least for :math:`e_k = -\sum_{j \ne k} e_j H_{jk} /
    H_{kk}`.

    Args:
        errors: E^T; what `improve` gives replaces its rows.
        H: the Hessian.
        improve: (k, wanted error, error now) -> error of column k.
        block: columns in a block.
    """
    for start in range(0, len(errors), block):
        stop = min(start + block, len(errors))
        pull = H[start:stop] @ errors
        for k in range(start, stop):
            own = pull[k - start] - H[k, k] * errors[k]
            wanted = -own / H[k, k] if H[k, k] > 0 else torch.zeros_like(own)
            change = improve(k, wanted, errors[k]) - errors[k]
            errors[k] += change
            pull += H[start:stop, k, None] * change


def proxy_loss(E: Float[Tensor, "m n"], H: Float[Tensor, "n n"]) -> float:
    """tr(E H E^T), the layer's squared output error per token."""
    return float(((E @ H) * E).sum())
