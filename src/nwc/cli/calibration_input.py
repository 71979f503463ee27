"""What `nwc compress` calibrates with: windows of tokens, or images as the model takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nwc.calibration.corpus import token_windows
from nwc.calibration.images import is_images, read_images
from nwc.cli.console import err
from nwc.compression.plan import Plan, require_skeleton
from nwc.errors import CalibrationError, ConfigError
from nwc.integrations.images import image_processor_of, require_image_size
from nwc.integrations.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from nwc.cli.compress import Compress

_BATCHES = 16
"""Equal batches that images are cut into at least, so that some can be held out."""


def calibration_windows(options: Compress, plan: Plan, folder: Path) -> Tensor:
    """Tokens [windows, context], or images [windows, channels, height, width], of the source.

    Raises:
        CalibrationError: the source cannot be used.
        ConfigError: an option does not fit, or the model has no tokenizer or image processor.
    """
    if require_skeleton(plan).takes_images:
        return _images(options, plan, folder)
    assert options.calibration is not None
    if is_images(options.calibration):
        raise CalibrationError(
            f"{options.calibration} holds images, {folder} is a language model; calibrate it with "
            "text"
        )
    return _tokens(options, plan, folder)


def _tokens(options: Compress, plan: Plan, folder: Path) -> Tensor:
    skeleton = require_skeleton(plan)
    limit = getattr(skeleton.model.config, "max_position_embeddings", None) or 2048
    context = options.context or min(2048, limit)
    if context > limit:
        raise ConfigError(f"--context is {context}, the model takes at most {limit} tokens")
    assert options.calibration is not None
    windows = token_windows(
        options.calibration, tokenizer_of(folder),
        tokens=options.calibration_tokens, context=context,
    )  # fmt: skip
    vocabulary = skeleton.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if int(windows.max()) >= vocabulary:
        raise CalibrationError(
            f"the tokenizer gives token {int(windows.max())}, the model knows {vocabulary}: "
            f"the tokenizer files in {folder} belong to another model"
        )
    return windows


def _images(options: Compress, plan: Plan, folder: Path) -> Tensor:
    """As many images as have the tokens that are wanted, in equal batches."""
    assert options.calibration is not None
    if options.context is not None:
        raise ConfigError("--context is for text; an image is one window")
    if options.distill_tokens:
        raise ConfigError("--distill-tokens is for language models; drop it")
    skeleton = require_skeleton(plan)
    process = image_processor_of(folder)
    first = process(read_images(options.calibration, 1).images)
    require_image_size(skeleton.model, first)
    count = max(1, options.calibration_tokens // skeleton.window_tokens(first))
    images = read_images(options.calibration, count).images
    if len(images) > _BATCHES:
        images = images[: len(images) - len(images) % _BATCHES]
    if skeleton.further_blocks:
        err.print(
            f"note: {', '.join(skeleton.further_blocks)} is compressed data-free; images "
            "calibrate the image encoder"
        )
    return process(images)
