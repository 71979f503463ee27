r"""The importance-aware rate-distortion loss.

Paper Eq. 5 multiplies the distortion by lambda_I; App. E divides the rate by it and reports that
this trains better. We follow App. E:

.. math:: \ell = R / \lambda_I + \lambda \, \mathrm{MSE}

with R in bits per weight and the error per normalised weight.

A codec conditioned on its gain g has no lambda of its own. The weight at which a uniform
quantiser of step 1 / g is optimal at high rate follows from D = 2^(-2R) var / 12 g^2:
dR/dD = -1 / (2 ln 2 D), so that lambda = 6 g^2 / ln 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from nwc.codec.model import TrainingOutput

if TYPE_CHECKING:
    from jaxtyping import Float


def importance_loss(
    output: TrainingOutput, lam: float, importance: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """The paper's loss (App. E), a mean over chunks."""
    return (output.bits / importance + lam * output.squared_error).mean()


def gain_loss(output: TrainingOutput, gain: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The loss of a codec conditioned on its gain, in bits per weight."""
    return (output.bits + 6 / math.log(2) * gain.square() * output.squared_error).mean()
