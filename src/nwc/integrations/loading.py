"""Ways into a compressed checkpoint from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    on_tensor: Callable[[str], object] | None = None,
) -> PreTrainedModel:
    """The transformers model of a compressed checkpoint, with dense weights.

    Args:
        path: its folder.
        dtype: of the weights.
        device: where to put them.
        codec: see `open_checkpoint`.
        on_tensor: told the name of each tensor when it is decoded.

    Raises:
        FormatError, BitstreamError: the checkpoint is damaged, or has no config of a model.
    """
    checkpoint = Checkpoint(path, codec)
    config = checkpoint.config()
    if config is None:
        raise FormatError(f"{path} has no config.json, so no model; use load_state_dict")
    weights = checkpoint.state_dict(dtype, on_tensor=on_tensor)
    return model_from_weights(config, weights, dtype).to(device)


def model_from_weights(
    config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """A causal language model from its config.json and weights.

    Raises:
        FormatError: the weights do not fill the model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("model_type")
    if kind is None:
        raise FormatError("config.json names no model_type, so no model; use load_state_dict")
    settings = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    kinds = AutoModelForCausalLM._model_mapping
    if type(settings) not in kinds:
        raise FormatError(f"{kind} is not a causal language model; use load_state_dict")
    model, info = kinds[type(settings)].from_pretrained(
        None, config=settings, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise FormatError(
            f"the checkpoint lacks {len(missing)} tensors of the model, {missing[0]} first"
        )
    return model.eval()
