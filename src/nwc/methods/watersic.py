r"""WaterSIC: a step for every column, scalar, entropy coded (Lifar et al., ICML 2026).

With H = L^T D L the step of column k is c / sqrt(d_k) (Sec. 3; d_k is the square of the paper's
l_kk): after feedback every column then adds the same to tr(E H E^T), as water-filling wants. What
feedback takes column k for is its integers times the step times

.. math:: \gamma_k = \langle \tilde w_k, \hat w_k \rangle / \|\hat w_k\|^2,

the linear estimate of least error. When all integers are there, rows and columns are rescaled in
turn, each step a problem of least squares (Sec. 4), until tr(E H E^T) stands still:

.. math:: \min_{t, \gamma} \mathrm{tr}(E H E^T), \quad
   E = W - \mathrm{diag}(t) Z \, \mathrm{diag}(\alpha \gamma)

All of it travels: alpha_k gamma_k as the scale of a column and t_i as that of a row, to 1/64
octave. The paper reports entropies; these are bytes. c is such that all layers have the same mean
rate. Columns are coded in classes half an octave of rate apart, each with its own table.

Left out: the corrections that need the whole model (of drifting activations and the residual
stream, attention-weighted Hessians, their mixing). `--features compressed` takes the first one's
Hessians. Without calibration the method is `ecsq`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nwc.codec import scales as scale_codes
from nwc.codec.config import DEFAULT, CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding.container import Section
from nwc.coding.tiling import PROFILES, Profile
from nwc.methods.base import Importance, LayerWeight
from nwc.methods.operating_point import OperatingPoint, one_step, waterfilled
from nwc.methods.stack import Stack
from nwc.methods.transform_coding import TransformCoding
from nwc.numerics.ldlq import LDL

if TYPE_CHECKING:
    from jaxtyping import Float

CODEC = CodecConfig(kind="identity", importance=DEFAULT.importance)
"""No transform, classes half an octave apart."""

_STEPS_PER_OCTAVE = 64
_ROUNDS = 8
_STANDSTILL = 1e-4
_DOUBLE_UP_TO = 4096


class WaterSIC(TransformCoding):
    """See the module.

    Args:
        profile: tile size.
        device: where quantisation runs.
    """

    name = "watersic"

    def __init__(self, profile: Profile = PROFILES["balanced"], device: str = "cpu") -> None:
        super().__init__(WeightCodec(CODEC), profile, device)

    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """See `TransformCoding.operating_point`."""
        if importance is None:
            return one_step(layer.W, log2_gain)
        return waterfilled(layer.W, importance.d, None, log2_gain, floor=0.0)

    def _restored(self, stack: Stack, column: int, target: Tensor) -> Tensor:
        restored = stack.quantise(column, target)
        parts = zip(target.split(stack.sizes), restored.split(stack.sizes), strict=True)
        return torch.cat([_shrunk(wanted, part) for wanted, part in parts])

    def refined(
        self,
        W: Tensor,
        E: Tensor,
        point: OperatingPoint,
        integers: np.ndarray,
        H: Tensor | None,
        factor: LDL | None,
    ) -> tuple[OperatingPoint, Tensor]:
        """See `TransformCoding.refined`."""
        if H is None or factor is None:
            return point, E
        H = H.cpu()
        H = H + factor.damping * H.diagonal().mean() * torch.eye(len(H))
        classes = torch.from_numpy(point.classes.columns).long()
        step = torch.exp2(-self.codec.level_log2_gain(classes, point.log2_gain).cpu())
        steps = point.scales * step
        Q = torch.from_numpy(integers.astype(np.float32)).T * steps
        rows, columns = rescalers(W, Q, H)
        packed, scales = scale_codes.pack_log(point.scales * columns, _STEPS_PER_OCTAVE)
        packed_rows, row_scales = scale_codes.pack_log(rows, _STEPS_PER_OCTAVE)
        sections = {
            **point.sections, Section.SCALES_LOG: packed, Section.ROW_SCALES: packed_rows
        }  # fmt: skip
        alive = torch.where(point.scales > 0, point.scales, 1)
        restored = row_scales[:, None] * Q * (scales / alive)
        point = point._replace(sections=sections, scales=scales, row_scales=row_scales)
        return point, W - restored


def rescalers(
    W: Float[Tensor, "m n"], Q: Float[Tensor, "m n"], H: Float[Tensor, "n n"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
    """Factors t and gamma, none negative, for which diag(t) Q diag(gamma) is near W under H.

    The mean of t is 1. Neither has effect on what is 0, where it is 1.
    """
    dtype = torch.float64 if len(H) <= _DOUBLE_UP_TO else torch.float32
    W, Q, H = W.to(dtype), Q.to(dtype), H.to(dtype)
    WH = W @ H
    power = float((WH * W).sum())
    rows, columns = torch.ones(len(W), dtype=dtype), torch.ones(len(H), dtype=dtype)
    best, least = (rows, columns), float("inf")
    for _ in range(_ROUNDS):
        columns = _columns(rows[:, None] * Q, WH, H)
        part = Q * columns
        wanted, own = (WH * part).sum(1), ((part @ H) * part).sum(1)
        rows = _ratio(wanted, own)
        loss = power + float((rows.square() * own - 2 * rows * wanted).sum())
        if loss >= least:
            break
        still = least - loss < _STANDSTILL * least
        best, least = (rows, columns), loss
        if still:
            break
    rows, columns = best
    mean = rows.mean()
    if mean > 0:
        rows, columns = rows / mean, columns * mean
    return rows.float(), columns.float()


def _columns(Q: Tensor, WH: Tensor, H: Tensor) -> Tensor:
    """Solve (Q^T Q * H) gamma = diag(Q^T W H)."""
    normal, wanted = (Q.T @ Q) * H, (Q * WH).sum(0)
    empty = normal.diagonal() <= 0
    normal.diagonal()[empty] = 1
    wanted[empty] = 1
    factor, failed = torch.linalg.cholesky_ex(normal)
    if int(failed):  # columns that feedback made copies of one another
        return _ratio(wanted, normal.diagonal())
    return torch.cholesky_solve(wanted[:, None], factor)[:, 0].clamp_min(0)


def _shrunk(wanted: Tensor, restored: Tensor) -> Tensor:
    return restored * _ratio(wanted @ restored, restored @ restored)


def _ratio(up: Tensor, down: Tensor) -> Tensor:
    """Quotient, not negative; 1 where `down` is 0."""
    return torch.where(down > 0, up / torch.where(down > 0, down, 1), 1).clamp_min(0)
