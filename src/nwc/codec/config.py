"""What a codec is made of: the three kinds of transform and the presets built from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nwc.errors import ConfigError

Kind = Literal["compander", "skip", "light", "residual", "identity"]

PAPER_LAMBDAS = (30, 50, 100, 300, 1000, 10000)
"""Rate-distortion weights of the paper's six codecs (Table 3)."""

PAPER_IMPORTANCE = (0.29, 0.83, 10.0, 20.0)
"""lambda_I, the weight of each importance level (Table 3)."""

MAX_LOG2_GAIN = 5.0
"""Finest step of the skip and identity kinds: unit-variance latents of 32 levels per deviation.

A symbol table holds 256 values, so that eight deviations still fit.
"""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Shape of a `WeightCodec`.

    Args:
        kind: `compander` (a learned correction of every weight by itself around a scalar
            quantiser, one codec for every rate), `skip` (the same for a chunk jointly), `light`
            (no transform, but a prior for every rate), `residual` (the paper's networks, one codec
            per lambda) or `identity` (neither).
        width: hidden units of both transforms.
        blocks: residual blocks in each transform (kind `residual` only).
        importance: lambda_I of every importance level, lowest first (paper Eq. 5).
        lam: lambda of the paper's loss in MSE per weight against bits per weight; kind `residual`.
        nominal_log2_gain: log2 gain at which a `residual` codec works without rescaling its input:
            that of the uniform quantiser with the same error, 2^(-2 gain) / 12 = MSE at level 0.

    Raises:
        ConfigError: a value out of range or missing for its kind.

    Example:
        >>> CodecConfig(kind="compander", width=16).levels
        4
    """

    kind: Kind
    width: int = 0
    blocks: int = 0
    importance: tuple[float, ...] = PAPER_IMPORTANCE
    lam: float | None = None
    nominal_log2_gain: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "importance", tuple(float(v) for v in self.importance))
        if self.kind not in get_args(Kind):
            raise ConfigError(f"codec kind {self.kind!r} is not one of {get_args(Kind)}")
        bare = self.kind in ("light", "identity")
        if not bare and not 1 <= self.width <= 4096:
            raise ConfigError(f"codec width {self.width} is not in 1 ... 4096")
        if self.kind == "residual" and not (1 <= self.blocks <= 64 and self.lam):
            raise ConfigError("a residual codec wants blocks in 1 ... 64 and a lambda")
        if not 1 <= len(self.importance) <= 16 or min(self.importance) <= 0:
            raise ConfigError(f"importance {self.importance} wants 1 to 16 positive weights")
        if not math.isfinite(self.nominal_log2_gain):
            raise ConfigError(f"nominal_log2_gain {self.nominal_log2_gain} is not finite")

    @property
    def levels(self) -> int:
        """K, the number of importance levels."""
        return len(self.importance)

    @property
    def level_offsets(self) -> tuple[float, ...]:
        """log2 of each level's gain against level 0.

        A weight lambda_I on the distortion asks for a step proportional to 1 / sqrt(lambda_I).
        """
        return tuple(0.5 * math.log2(v / self.importance[0]) for v in self.importance)

    @property
    def gain_conditioned(self) -> bool:
        """Whether one codec serves every gain, so that levels can be any offsets of it."""
        return self.kind in ("compander", "skip", "light")

    @property
    def elementwise(self) -> bool:
        """Whether the transforms treat every weight by itself, so that a lookup can decode."""
        return self.kind in ("identity", "light", "compander")

    @property
    def channels_share_tables(self) -> bool:
        """Whether the 16 latent channels are exchangeable, so that one table serves them all."""
        return self.kind != "residual"

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CodecConfig:
        """Inverse of `to_dict`; unknown or missing fields are an error that names them."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or "kind" not in values or not set(values) <= known:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ConfigError(f"codec config has {got}, wanted 'kind' and any of {sorted(known)}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"codec config {values} cannot be read: {error}") from error


DEFAULT = CodecConfig(
    kind="compander", width=16, importance=tuple(2.0**level for level in range(16))
)
"""Preset `default`: 80 parameters a transform, a lookup to decode, every rate from 2 to 7 bits.

Its levels are half an octave of gain apart (`methods.operating_point.waterfilled`).
"""

LIGHT = CodecConfig(kind="light", importance=DEFAULT.importance)
"""Preset `light`: a weight is a multiple of half its step; nothing is looked up or transformed."""

IDENTITY = CodecConfig(kind="identity", importance=(1.0,))
"""No transform and a single level: uniform scalar quantisation."""


def paper(lam: float) -> CodecConfig:
    """Preset `paper`: width 512, 4 + 4 blocks, K = 4, one codec per lambda (Table 3)."""
    nominal = 0.5 * math.log2(lam * PAPER_IMPORTANCE[0] * 2 * math.log(2) / 12)
    return CodecConfig(
        kind="residual", width=512, blocks=4, lam=float(lam), nominal_log2_gain=nominal
    )
