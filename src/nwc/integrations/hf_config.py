"""`NWCConfig`: what transformers is told about compressed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from transformers.utils.quantization_config import QuantizationConfigMixin

from nwc.errors import ConfigError
from nwc.formats.layout import QUANT_METHOD

Mode = Literal["dense", "packed"]


class NWCConfig(QuantizationConfigMixin):
    """How `from_pretrained` treats compressed weights, or compresses ordinary ones.

    Args:
        bits: bits per parameter, for a folder that is not compressed yet; 4.5 unless told
            otherwise. A compressed folder says for itself how many it has.
        mode: `dense` decodes everything while loading and gives an ordinary model; `packed` keeps
            the weights compressed and decodes each when it is used.
        codec: codec file, for a folder that only refers to one that is not shipped.
        **options: of `nwc.compress`, for a folder that is not compressed yet; or what the
            config.json of a compressed one says.

    Raises:
        ConfigError: there is no such mode.

    Example:
        AutoModelForCausalLM.from_pretrained("OUT", quantization_config=NWCConfig(mode="packed"))
    """

    def __init__(
        self,
        bits: float | None = None,
        mode: Mode = "dense",
        codec: str | Path | None = None,
        **options: Any,  # noqa: ANN401  (JSON)
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"mode is {mode!r}, wanted one of {', '.join(get_args(Mode))}")
        options.pop("quant_method", None)
        self.quant_method = QUANT_METHOD
        self.bits = None if bits is None else float(bits)
        self.mode = mode
        self.codec = codec
        self.options = options

    def to_dict(self) -> dict[str, Any]:
        """What config.json says: of the file, not of how it happens to be run."""
        bits = {} if self.bits is None else {"bits": self.bits}
        return {"quant_method": self.quant_method, **bits, **self.options}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing is left out because it is the default."""
        return self.to_dict()

    @property
    def compression(self) -> dict[str, Any]:
        """Options of `nwc.compress`."""
        given = {"bits": self.bits, "codec": self.codec}
        return {name: value for name, value in given.items() if value is not None} | self.options

    def describe(self, file: dict[str, Any]) -> None:
        """Take over what a compressed folder says of itself.

        Args:
            file: `quantization_config` of its config.json.
        """
        stored = NWCConfig.from_dict(file)
        self.bits, self.options = stored.bits, stored.options

    def adopt(self, given: NWCConfig) -> None:
        """Take over what a user asks for while loading a folder that is compressed already."""
        self.mode = given.mode
        self.codec = given.codec
