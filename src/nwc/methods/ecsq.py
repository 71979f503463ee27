"""Entropy-coded uniform scalar quantisation with LDLQ: the honest floor.

One step for a whole matrix, proportional to its root mean square, reconstruction at multiples of
the step, one counted table; what WaterSIC calls Huffman-GPTQ, with an arithmetic coder.
"""

from __future__ import annotations

from nwc.codec.config import IDENTITY
from nwc.codec.model import WeightCodec
from nwc.coding.tiling import PROFILES, Profile
from nwc.methods.base import Importance, LayerWeight
from nwc.methods.operating_point import OperatingPoint, one_step
from nwc.methods.transform_coding import TransformCoding


class Ecsq(TransformCoding):
    """See the module.

    Args:
        profile: tile size.
        device: where quantisation runs.
    """

    name = "ecsq"

    def __init__(self, profile: Profile = PROFILES["balanced"], device: str = "cpu") -> None:
        super().__init__(WeightCodec(IDENTITY), profile, device)

    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """See `TransformCoding.operating_point`."""
        return one_step(layer.W, log2_gain)
