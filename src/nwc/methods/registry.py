"""Name -> method."""

from __future__ import annotations

from typing import Literal, get_args

from nwc.codec.model import WeightCodec
from nwc.coding.tiling import Profile
from nwc.errors import ConfigError
from nwc.methods.base import LayerMethod
from nwc.methods.dense import DenseMethod
from nwc.methods.ecsq import Ecsq
from nwc.methods.gptq import GPTQ, GPTQActOrder
from nwc.methods.neural import Decisions, Neural
from nwc.methods.qtip import Qtip, Qtip3Inst, QtipHybrid
from nwc.methods.quip_sharp import QuipSharp
from nwc.methods.rtn import RTN
from nwc.methods.seedlm import SeedLM
from nwc.methods.spinquant import SpinQuant

MethodName = Literal[
    "nwc",
    "ecsq",
    "rtn",
    "gptq",
    "gptq_act_order",
    "qtip",
    "qtip_3inst",
    "qtip_hyb",
    "quip_sharp",
    "seedlm",
    "spinquant",
]

DENSE: dict[str, type[DenseMethod]] = {
    method.name: method
    for method in (
        RTN,
        GPTQ,
        GPTQActOrder,
        Qtip,
        Qtip3Inst,
        QtipHybrid,
        QuipSharp,
        SeedLM,
        SpinQuant,
    )
}
"""Methods without a file format of their own."""


def make_method(
    name: MethodName,
    *,
    bits: float,
    codec: WeightCodec | None,
    decisions: Decisions,
    profile: Profile,
    seed: int = 0,
    device: str = "cpu",
) -> LayerMethod:
    """The method of a name.

    Args:
        name: of the method.
        bits: per weight, for methods that come in a few rates.
        codec: for method `nwc`, which alone has one.
        decisions: of method `nwc`.
        profile: tile size, for methods that write streams.
        seed: of everything random.
        device: where quantisation runs.

    Raises:
        ConfigError: there is no such method, or none for so many bits.
    """
    if name not in get_args(MethodName):
        raise ConfigError(f"method {name!r} is not one of {', '.join(get_args(MethodName))}")
    if name == Neural.name:
        if codec is None:
            raise ConfigError("method nwc wants a codec")
        return Neural(codec, profile, device, decisions)
    if codec is not None:
        raise ConfigError(f"method {name} has no codec")
    if name == Ecsq.name:
        return Ecsq(profile, device)
    return DENSE[name](bits, seed, device)
