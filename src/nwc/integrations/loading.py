"""Ways into a compressed checkpoint from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nwc.architectures import model_classes, settings_of
from nwc.errors import FormatError
from nwc.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_checkpoint(path: str | Path, codec: str | Path | None = None) -> Checkpoint:
    """Open a compressed checkpoint lazily: `.keys()`, `.tensor(name)`, `.tile(name, i)`.

    Args:
        path: its folder.
        codec: the codec file, for a checkpoint that only refers to one that is not shipped.

    Raises:
        FormatError: the folder is not a compressed checkpoint, or not one that this nwc reads.
    """
    return Checkpoint(path, codec)


def load_state_dict(
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    codec: str | Path | None = None,
) -> dict[str, Tensor]:
    """All tensors of a compressed checkpoint, by the original names.

    Args:
        path: its folder.
        dtype: of all floating-point tensors.
        device: where to put them.
        codec: see `open_checkpoint`.

    Raises:
        FormatError, BitstreamError: the checkpoint is damaged or not one.
    """
    return Checkpoint(path, codec).state_dict(dtype, device)


def load_model(
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    codec: str | Path | None = None,
) -> PreTrainedModel:
    """The transformers model of a compressed checkpoint, with dense weights.

    Args:
        path: its folder.
        dtype: of the weights.
        device: where to put them.
        codec: see `open_checkpoint`.

    Raises:
        FormatError, BitstreamError: the checkpoint is damaged, or has no config of a model.
    """
    checkpoint = Checkpoint(path, codec)
    config = checkpoint.config()
    if config is None:
        raise FormatError(f"{path} has no config.json, so no model; use load_state_dict")
    return model_from_weights(config, checkpoint.state_dict(dtype), dtype).to(device)


def model_from_weights(
    config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """A causal language model, or a model of images, from its config.json and weights.

    Raises:
        FormatError: the weights do not fill the model.
    """
    if config.get("model_type") is None:
        raise FormatError("config.json names no model_type, so no model; use load_state_dict")
    settings = settings_of(config)
    kinds = model_classes(settings)
    if not kinds:
        raise FormatError(
            f"{config['model_type']} is not a causal language model and none of images; use "
            "load_state_dict"
        )
    missing: list[str] = []
    for kind in kinds:
        model, info = kind.from_pretrained(
            None, config=settings, state_dict=dict(weights), dtype=dtype, output_loading_info=True
        )
        missing = sorted(info["missing_keys"])
        if not missing:
            return model.eval()
    raise FormatError(
        f"the checkpoint lacks {len(missing)} tensors of the model, {missing[0]} first"
    )
