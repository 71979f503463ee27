"""NWC: the learned codec (paper Sec. 3), in its presets `default` and `paper`."""

from __future__ import annotations

from dataclasses import dataclass

from nwc.codec.model import WeightCodec
from nwc.coding.tiling import PROFILES, Profile
from nwc.coding.trellis import TRELLISES
from nwc.errors import ConfigError
from nwc.methods.base import Importance, LayerWeight
from nwc.methods.operating_point import OperatingPoint, by_levels, normalised, waterfilled
from nwc.methods.transform_coding import TransformCoding


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """How weights are quantised beyond the paper. The codecs of preset `paper` take no part.

    Args:
        trellis: states of the trellis: 4, 8 or 32; 0 rounds every weight by itself.
        rate_weight: price of a bit in squared steps while paths are decided; at high rates the
            two balance at about 0.1.
        sweeps: how often every column is decided again once the errors of all are known.

    Raises:
        ConfigError: no such trellis, or a negative number.
    """

    trellis: int = 8
    rate_weight: float = 0.025
    sweeps: int = 0

    def __post_init__(self) -> None:
        if self.trellis not in (0, *TRELLISES):
            raise ConfigError(
                f"trellis has {self.trellis} states, wanted one of {[0, *TRELLISES]}"
            )
        if self.rate_weight < 0 or self.sweeps < 0:
            raise ConfigError(
                f"rate weight {self.rate_weight} and sweeps {self.sweeps} must not be negative"
            )


class Neural(TransformCoding):
    """Chunks normalised by column, learned transforms, importance, LDLQ.

    Codecs of one rate (the paper's) quantise at importance levels; codecs conditioned on their
    gain with water-filled steps.

    Args:
        codec: a trained codec.
        profile: tile size.
        device: where quantisation runs.
        decisions: how weights are quantised.
    """

    name = "nwc"

    def __init__(
        self,
        codec: WeightCodec,
        profile: Profile = PROFILES["balanced"],
        device: str = "cpu",
        decisions: Decisions | None = None,
    ) -> None:
        if not codec.config.elementwise:
            super().__init__(codec, profile, device)
            return
        self.waterfills = True
        decisions = decisions or Decisions()
        super().__init__(
            codec,
            profile,
            device,
            states=decisions.trellis,
            rate_weight=decisions.rate_weight,
            sweeps=decisions.sweeps,
        )

    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """See `TransformCoding.operating_point`."""
        if not self.codec.config.gain_conditioned:
            diagonal = None if importance is None else importance.diagonal
            return by_levels(layer.W, diagonal, log2_gain, self.codec)
        if importance is None:
            return normalised(layer.W, log2_gain)
        # Classes of rows would part the 16 weights of a chunk.
        rows = importance.row_weights if self.codec.config.elementwise else None
        return waterfilled(layer.W, importance.d, rows, log2_gain)
