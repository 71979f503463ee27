"""Neural Weight Compression: learned codecs and real entropy-coded files for model weights.

Reading a compressed checkpoint needs no transformers:

    import nwc
    checkpoint = nwc.open("model-nwc")            # lazy
    W = checkpoint.tensor("model.layers.0.mlp.up_proj.weight")
    weights = nwc.load_state_dict("model-nwc")    # everything, BF16
    model = nwc.load_model("model-nwc")           # a transformers model
"""

from nwc.errors import BitstreamError, CalibrationError, ConfigError, FormatError, NWCError
from nwc.formats.checkpoint import Checkpoint
from nwc.integrations.loading import load_model, load_state_dict
from nwc.integrations.loading import open_checkpoint as open

__version__ = "0.1.0"

__all__ = [
    "BitstreamError",
    "CalibrationError",
    "Checkpoint",
    "ConfigError",
    "FormatError",
    "NWCError",
    "load_model",
    "load_state_dict",
    "open",
]
