"""Name -> method."""

from __future__ import annotations

from typing import Literal, get_args

from nwc.codec.model import WeightCodec
from nwc.coding.tiling import Profile
from nwc.errors import ConfigError
from nwc.methods.awq import AWQ
from nwc.methods.base import LayerMethod
from nwc.methods.bitdistiller import BitDistiller
from nwc.methods.dense import DenseMethod
from nwc.methods.ecsq import Ecsq
from nwc.methods.entquant import EntQuant
from nwc.methods.gguf_k import GGUFK
from nwc.methods.gguf_legacy import GGUFLegacy
from nwc.methods.gptq import GPTQ, GPTQActOrder
from nwc.methods.llm_qat import LLMQAT
from nwc.methods.neural import Decisions, Neural
from nwc.methods.pocketllm import PocketLLM
from nwc.methods.qtip import QTIP, QTIP3Inst, QTIPHybrid
from nwc.methods.quip_sharp import QuIPSharp
from nwc.methods.reallm import ReALLM
from nwc.methods.rtn import RTN
from nwc.methods.seedlm import SeedLM
from nwc.methods.spinquant import SpinQuant
from nwc.methods.svd_llm import SVDLLM, SVDLLMV2
from nwc.methods.watersic import WaterSIC

MethodName = Literal[
    "nwc",
    "ecsq",
    "watersic",
    "entquant",
    "rtn",
    "gptq",
    "gptq_act_order",
    "awq",
    "spinquant",
    "quip_sharp",
    "qtip",
    "qtip_3inst",
    "qtip_hyb",
    "seedlm",
    "svd_llm",
    "svd_llm_v2",
    "pocketllm",
    "reallm",
    "llm_qat",
    "bitdistiller",
    "gguf_k",
    "gguf_legacy",
]

CODED: dict[str, type[Ecsq] | type[WaterSIC] | type[EntQuant]] = {
    method.name: method for method in (Ecsq, WaterSIC, EntQuant)
}
"""Methods that write streams without a learned codec."""

_DENSE: tuple[type[DenseMethod], ...] = (
    RTN,
    GPTQ,
    GPTQActOrder,
    AWQ,
    SpinQuant,
    QuIPSharp,
    QTIP,
    QTIP3Inst,
    QTIPHybrid,
    SeedLM,
    SVDLLM,
    SVDLLMV2,
    PocketLLM,
    ReALLM,
    LLMQAT,
    BitDistiller,
    GGUFK,
    GGUFLegacy,
)
DENSE = {method.name: method for method in _DENSE}
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
    if name in CODED:
        return CODED[name](profile, device)
    return DENSE[name](bits, seed, device)
