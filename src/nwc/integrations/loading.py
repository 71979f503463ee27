"""Ways into a compressed checkpoint from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from nwc.architectures import model_classes, settings_of
from nwc.errors import ConfigError, FormatError
from nwc.formats.checkpoint import Checkpoint, is_compressed
from nwc.integrations.packed import packed_matrices

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


def load_any(
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    device: str | torch.device,
    *,
    mode: Literal["dense", "packed"] = "dense",
    codec: Path | None = None,
) -> PreTrainedModel:
    """A causal language model from its folder, compressed or not, as transformers loads it.

    Args:
        folder: of the model.
        dtype: of the weights; auto: what its config.json says.
        device: where to put them.
        mode: of compressed weights (`nwc.NWCConfig`).
        codec: see `open_checkpoint`.

    Raises:
        ConfigError: an ordinary model shall be packed.
        FormatError, BitstreamError: the folder is damaged, or not such a model.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if is_compressed(folder):
        from nwc.integrations.hf_config import NWCConfig  # noqa: PLC0415  (imports transformers)

        options["quantization_config"] = NWCConfig(mode=mode, codec=codec)
    elif mode == "packed":
        raise ConfigError(f"{folder} is not compressed, so there is nothing to keep packed")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    except (ValueError, OSError, KeyError) as error:
        raise FormatError(
            f"{folder} is not a causal language model: {str(error).splitlines()[0]}"
        ) from error
    return model.to(device).eval()


class WeightBytes(NamedTuple):
    """Bytes that the weights of a model take in memory.

    Args:
        dense: parameters and buffers.
        packed: compressed ones: their streams, byte for byte.
    """

    dense: int
    packed: int


def weight_bytes(model: torch.nn.Module) -> WeightBytes:
    """How much memory a model's weights take; what is shared counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    packed = {
        (id(p.checkpoint), key): p for p in packed_matrices(model).values() for key in p.keys
    }
    return WeightBytes(
        sum(t.numel() * t.itemsize for t in tensors.values()),
        sum(p.checkpoint.stream_bytes(key) for (_, key), p in packed.items()),
    )
