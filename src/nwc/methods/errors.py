"""What compression did to a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from nwc.codec.compressed import MeasuredErrors
from nwc.numerics.ldlq import LDL, proxy_loss

if TYPE_CHECKING:
    from jaxtyping import Float


def measure(
    W: Float[Tensor, "m n"],
    E: Float[Tensor, "m n"],
    H: Float[Tensor, "n n"] | None,
    factor: LDL | None,
) -> MeasuredErrors:
    """Errors E of a matrix W, under the Hessian of its input if there is one.

    Args:
        W: the matrix.
        E: what it differs by.
        H: the Hessian; None without calibration.
        factor: of H, which says how much damping that took.
    """
    norm = float(W.norm())
    relative = float(E.norm()) / norm if norm else 0.0
    if H is None or factor is None:
        return MeasuredErrors(relative)
    H = H.cpu()
    power = proxy_loss(W, H)
    return MeasuredErrors(relative, proxy_loss(E, H) / power if power else 0.0, factor.damping)


def by_importance(
    W: Float[Tensor, "m n"], E: Float[Tensor, "m n"], diagonal: Float[Tensor, " n"]
) -> list[float]:
    """Relative error of the columns in each tenth of diag H, quietest first."""
    order = diagonal.cpu().argsort(stable=True)
    shares = []
    for columns in order.tensor_split(10):
        power = float(W[:, columns].square().sum())
        shares.append((float(E[:, columns].square().sum()) / power) ** 0.5 if power else 0.0)
    return shares
