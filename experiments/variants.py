"""The codec with one part of it changed, for experiments on single matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from nwc.codec.config import IDENTITY
from nwc.codec.model import WeightCodec
from nwc.formats.shipped import shipped_codec
from nwc.methods.base import Importance, LayerMethod, LayerWeight
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Decisions, Neural
from nwc.methods.operating_point import (
    OperatingPoint,
    by_levels,
    normalised,
    one_step,
    waterfilled,
)
from nwc.methods.transform_coding import TransformCoding
from nwc.numerics.ldlq import ldl

PLAIN = Decisions(trellis=0, rate_weight=0.0)


class Normalised(TransformCoding):
    """Uniform steps in proportion to the spread of a column, a matrix, or all matrices.

    Args:
        granularity: column, tensor or global.
        spread: root mean square of all matrices, for global.
    """

    name = "normalised"

    def __init__(self, granularity: str, spread: float) -> None:
        super().__init__(WeightCodec(IDENTITY))
        self.granularity = granularity
        self.spread = spread

    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """See `TransformCoding.operating_point`."""
        if self.granularity == "column":
            return by_levels(layer.W, None, log2_gain, self.codec)
        if self.granularity == "tensor":
            return one_step(layer.W, log2_gain)
        # The step of a matrix follows its own spread; undo that.
        own = float(layer.W.square().mean().sqrt())
        shift = torch.tensor(own / self.spread).log2() if own else torch.tensor(0.0)
        return one_step(layer.W, log2_gain + float(shift))


class Steered(Neural):
    """The codec with importance that is given, whether there is feedback or not.

    Args:
        codec: which.
        H: of the matrix's input; None treats all columns alike.
        decisions: how weights are quantised.
    """

    def __init__(
        self, codec: WeightCodec, H: Tensor | None, decisions: Decisions | None = None
    ) -> None:
        super().__init__(codec, decisions=decisions)
        self.H = H

    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """See `TransformCoding.operating_point`."""
        if not self.codec.config.gain_conditioned:
            diagonal = None if self.H is None else self.H.diagonal()
            return by_levels(layer.W, diagonal, log2_gain, self.codec)
        if self.H is None:
            return normalised(layer.W, log2_gain)
        return waterfilled(layer.W, ldl(self.H).d.float(), None, log2_gain)


def paper(bits: float, H: Tensor | None = None) -> Steered:
    """The paper's codec for a rate, with importance levels if there is H."""
    return Steered(shipped_codec("paper", bits)[0], H)


def default(bits: float, H: Tensor | None = None) -> Steered:
    """The default codec, with steps by importance if there is H."""
    return Steered(shipped_codec("default", bits)[0], H)


def identity() -> Normalised:
    """No transform: rounding of normalised columns."""
    return Normalised("column", 1.0)


def ecsq() -> LayerMethod:
    """One step for a whole matrix."""
    return Ecsq()
