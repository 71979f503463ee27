"""The codecs that come with the package, and which of them suits a rate."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from nwc.codec.model import WeightCodec
from nwc.errors import ConfigError
from nwc.formats.codec_file import load_codec, load_config

_UNIT_NORMAL_BITS = 2.05
"""Entropy in bits of a unit normal rounded to integers: rate minus log2 gain."""


def shipped_codecs() -> dict[str, Path]:
    """Name -> file."""
    folder = Path(str(resources.files("nwc"))) / "codecs"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def shipped_codec(preset: str, bits: float) -> tuple[WeightCodec, str]:
    """The codec of a preset for a rate, and its name.

    Preset `paper` has one codec for each lambda; the one whose own rate is nearest serves.

    Raises:
        ConfigError: there is no such preset.
    """
    shipped = shipped_codecs()
    names = [name for name in shipped if name.partition("-")[0] == preset]
    if not names:
        raise ConfigError(f"preset {preset!r} is not one of {sorted(shipped)}")
    gains = {name: load_config(shipped[name]).nominal_log2_gain for name in names}
    name = min(names, key=lambda n: abs(gains[n] - (bits - _UNIT_NORMAL_BITS)))
    return load_codec(shipped[name]), name
