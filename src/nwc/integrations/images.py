"""Models of images: the model of a folder, compressed or not, and its own image processor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nwc.architectures import IMAGES, inputs_of, model_classes
from nwc.errors import ConfigError, FormatError
from nwc.formats.checkpoint import is_compressed
from nwc.integrations.loading import load_model

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from transformers import PreTrainedModel

_BATCH = 64
"""Images that the processor gets at once."""


def load_image_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    codec: str | Path | None = None,
) -> PreTrainedModel:
    """The model of a folder that takes images.

    Args:
        folder: of a compressed checkpoint or an ordinary one.
        dtype: of the weights.
        device: where to put them.
        codec: see `loading.open_checkpoint`.

    Raises:
        FormatError: it is no model of images.
    """
    if is_compressed(folder):
        model = load_model(folder, dtype, device, codec)
    else:
        model = _original(folder, dtype).to(device).eval()
    if IMAGES not in inputs_of(model):
        raise FormatError(
            f"{folder} is a {type(model).__name__}, which takes text: give --text, not --images"
        )
    return model


def _original(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise FormatError(f"{folder} is no model: {str(error).splitlines()[0]}") from error
    missing: list[str] = []
    for kind in model_classes(config):
        model, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        missing = sorted(info["missing_keys"])
        if not missing:
            return model
    why = f"it lacks {missing[0]}" if missing else f"its kind is {config.model_type}"
    raise FormatError(f"{folder} is no model of images that transformers knows: {why}")


def image_processor_of(
    folder: Path,
) -> Callable[[Sequence[np.ndarray]], Float[Tensor, "images channels height width"]]:
    """The model's image processor as a function from images [height, width, 3] to its inputs.

    Raises:
        ConfigError: the folder has none that loads.
    """
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder)
    except Exception as error:  # raised by several libraries
        raise ConfigError(
            f"{folder} has no image processor that loads ({str(error).splitlines()[0]}); add its "
            "preprocessor_config.json"
        ) from error

    def process(images: Sequence[np.ndarray]) -> Tensor:
        parts = []
        for start in range(0, len(images), _BATCH):
            batch = list(images[start : start + _BATCH])
            try:
                parts.append(processor(images=batch, return_tensors="pt")[IMAGES])
            except ValueError as error:
                shapes = sorted({image.shape[:2] for image in batch})
                raise ConfigError(
                    f"the image processor of {folder} cannot make a batch of images of "
                    f"{' and '.join(f'{h} x {w}' for h, w in shapes[:2])}: "
                    f"{str(error).splitlines()[0]}; let preprocessor_config.json resize"
                ) from error
        sizes = {part.shape[1:] for part in parts}
        if len(sizes) > 1:
            raise ConfigError(
                f"the image processor of {folder} gives images of {len(sizes)} sizes; let "
                "preprocessor_config.json resize"
            )
        return torch.cat(parts)

    return process


def require_image_size(model: nn.Module, pixels: Tensor) -> None:
    """Check that images have the size that a model was made for.

    Models that fit their table of positions to any size, as DINOv2 does, take any.

    Args:
        model: whose config may name a size.
        pixels: what its image processor gives.

    Raises:
        ConfigError: they have another.
    """
    config: Any = model.config
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    if size is None or _interpolates(model):
        return
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)
    if tuple(pixels.shape[1:]) != (channels, height, width):
        got = " x ".join(map(str, pixels.shape[1:]))
        raise ConfigError(
            f"images come as {got}, the model takes {channels} x {height} x {width}; let its "
            "preprocessor_config.json resize them"
        )


def _interpolates(model: nn.Module) -> bool:
    """Whether a model fits its positions to the image unasked; others have an argument for it."""
    name = "interpolate_pos_encoding"
    able = [module for module in model.modules() if hasattr(module, name)]
    return bool(able) and not any(
        name in inspect.signature(module.forward).parameters for module in model.modules()
    )
