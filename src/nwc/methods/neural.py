"""NWC: the learned codec (paper Sec. 3), in its presets `default` and `paper`."""

from __future__ import annotations

from nwc.codec.model import WeightCodec
from nwc.coding.tiling import PROFILES, Profile
from nwc.methods.transform_coding import Scaling, TransformCoding


class Neural(TransformCoding):
    """Chunks normalised by column, learned transforms, importance levels, LDLQ.

    The paper's codecs keep its FP16 scales; the others store scales logarithmically.

    Args:
        codec: a trained codec.
        profile: tile size.
        device: where quantisation runs.
    """

    name = "nwc"

    def __init__(
        self,
        codec: WeightCodec,
        profile: Profile = PROFILES["balanced"],
        device: str = "cpu",
    ) -> None:
        scaling: Scaling = "column_f16" if codec.config.kind == "residual" else "column_log"
        super().__init__(codec, scaling, profile, device)
