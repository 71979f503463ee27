r"""EntQuant: scales of rows that make the integers cheap to code (Putzky et al., 2026).

Data-free (arXiv 2601.22787). The scale of every row of W [m, n] is chosen by what the integers z
would cost,

.. math:: \min_s \frac{\|W - s z\|_1}{\|W\|_1} + \lambda \, \mathrm{mean} |z|, \quad
   z = \lfloor W / s \rceil

where the mean magnitude stands for entropy, and lambda, the same for all layers, sets the rate.
The integers are then entropy coded, a table for each matrix.

Readings. Written from the abstract and the description of the published code, whose grid is Float8
or Int8; this is the latter. It searches with L-BFGS through the rounding. But the objective is a
sum over rows, each with one unknown, so here every row is searched on the grid of scales that the
file can hold, 64 an octave, within 1.5 octaves of

.. math:: s_i^2 = 4 \lambda \, \mathrm{mean}_k |w_{ik}| \, \mathrm{mean} |W|,

the solution at high rates. lambda = (pi / 8) 4^-gain makes this the step of `ecsq` for rows of
equal Gaussian weights. What Int8 would clamp at 127 leaves the table and travels as a patch. The
layers with super weights that it leaves at 8 bits are coded like all others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nwc.codec import scales as scale_codes
from nwc.codec.config import IDENTITY
from nwc.codec.model import WeightCodec
from nwc.coding.container import Section
from nwc.coding.tiling import PROFILES, Profile
from nwc.methods.base import Importance, LayerWeight
from nwc.methods.operating_point import OperatingPoint, one_step
from nwc.methods.transform_coding import TransformCoding

if TYPE_CHECKING:
    from jaxtyping import Float

_STEPS_PER_OCTAVE = 64
_COARSE = 8
"""Every so many steps are tried first."""


class EntQuant(TransformCoding):
    """See the module.

    Args:
        profile: tile size.
        device: where quantisation runs.
    """

    name = "entquant"
    feeds_back = False

    def __init__(self, profile: Profile = PROFILES["balanced"], device: str = "cpu") -> None:
        super().__init__(WeightCodec(IDENTITY), profile, device)

    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """See `TransformCoding.operating_point`; importance plays no part."""
        point = one_step(layer.W, log2_gain)
        steps = row_steps(layer.W, math.pi / 8 * 4.0**-log2_gain)
        unit = float(point.scales[0]) * 2.0**-log2_gain
        if not unit > 0:
            return point
        packed, rows = scale_codes.pack_log(steps / unit, _STEPS_PER_OCTAVE)
        sections = {**point.sections, Section.ROW_SCALES: packed}
        return point._replace(sections=sections, row_scales=rows)


def row_steps(W: Float[Tensor, "m n"], price: float) -> Float[Tensor, " m"]:
    """The step of every row for which its L1 error plus the price of its integers is least.

    Args:
        W: the matrix.
        price: lambda, of a mean magnitude of 1 against a relative L1 error of 1.
    """
    magnitude = float(W.abs().mean())
    start = 2 * (price * W.abs().mean(1) * magnitude).sqrt()
    steps = torch.where(start > 0, start, torch.ones_like(start))
    reach = 3 * _STEPS_PER_OCTAVE // 2
    steps = _best(W, steps, range(-reach, reach + 1, _COARSE), price * magnitude)
    return _best(W, steps, range(1 - _COARSE, _COARSE), price * magnitude)


def _best(W: Tensor, steps: Tensor, tried: range, price: float) -> Tensor:
    best, least = steps, torch.full_like(steps, math.inf)
    for shift in tried:
        candidate = steps * 2.0 ** (shift / _STEPS_PER_OCTAVE)
        loss = objective(W, candidate, price)
        best = torch.where(loss < least, candidate, best)
        least = torch.minimum(least, loss)
    return best


def objective(
    W: Float[Tensor, "m n"], steps: Float[Tensor, " m"], price: float
) -> Float[Tensor, " m"]:
    """L1 error of every row and the price of its integers.

    Args:
        W: the matrix.
        steps: of the rows.
        price: of a magnitude of 1, in units of W.
    """
    z = (W / steps[:, None]).round()
    return (W - z * steps[:, None]).abs().sum(1) + price * z.abs().sum(1)
