"""Name -> method."""

from __future__ import annotations

from collections.abc import Callable

from nwc.codec.model import WeightCodec
from nwc.coding.tiling import Profile
from nwc.errors import ConfigError
from nwc.methods.base import LayerMethod
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural


def _neural(codec: WeightCodec | None, profile: Profile, device: str) -> LayerMethod:
    if codec is None:
        raise ConfigError("method nwc wants a codec")
    return Neural(codec, profile, device)


def _ecsq(codec: WeightCodec | None, profile: Profile, device: str) -> LayerMethod:
    if codec is not None:
        raise ConfigError("method ecsq has no codec")
    return Ecsq(profile, device)


METHODS: dict[str, Callable[[WeightCodec | None, Profile, str], LayerMethod]] = {
    Neural.name: _neural,
    Ecsq.name: _ecsq,
}
