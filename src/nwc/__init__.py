"""Neural Weight Compression: learned codecs and real entropy-coded files for model weights.

Reading a compressed checkpoint needs no transformers:

    import nwc
    checkpoint = nwc.open("model-nwc")            # lazy
    W = checkpoint.tensor("model.layers.0.mlp.up_proj.weight")
    weights = nwc.load_state_dict("model-nwc")    # everything, BF16
    model = nwc.load_model("model-nwc")           # a transformers model

From here on transformers reads compressed folders, too:

    model = AutoModelForCausalLM.from_pretrained("model-nwc")
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nwc.errors import BitstreamError, CalibrationError, ConfigError, FormatError, NWCError
from nwc.formats.checkpoint import Checkpoint
from nwc.integrations.loading import load_model, load_state_dict
from nwc.integrations.loading import open_checkpoint as open
from nwc.integrations.on_the_fly import use_compressor
from nwc.integrations.registration import register_when_imported

if TYPE_CHECKING:
    from nwc.integrations.hf_config import NWCConfig

__version__ = "0.1.0"

__all__ = [
    "BitstreamError",
    "CalibrationError",
    "Checkpoint",
    "ConfigError",
    "FormatError",
    "NWCConfig",
    "NWCError",
    "compress",
    "load_model",
    "load_state_dict",
    "open",
]


def compress(model: str | Path, output: str | Path, **options: Any) -> Checkpoint:  # noqa: ANN401
    """Compress a model as the command `nwc compress` does, and open the result.

    Args:
        model: folder of safetensors, or a hub name.
        output: folder to make.
        **options: flags of the command, with underscores: bits=4.5, calibration="text.txt", ...

    Raises:
        NWCError: what the command would end with.
    """
    from nwc.cli.compress import compress_folder  # noqa: PLC0415  (loading does without)

    return compress_folder(model, output, **options)


register_when_imported()
use_compressor(compress)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """`nwc.NWCConfig` derives from a class of transformers, which is imported only for it."""
    if name != "NWCConfig":
        raise AttributeError(f"module 'nwc' has no attribute {name!r}")
    from nwc.integrations.hf_config import NWCConfig  # noqa: PLC0415

    return NWCConfig
