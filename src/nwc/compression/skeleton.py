"""A model without its weights, and which tensors of the checkpoint fill its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from nwc.architectures import (
    IMAGES,
    TOKENS,
    inputs_of,
    is_classifier,
    model_classes,
    settings_for,
)
from nwc.compression.experts import expert_slots, use_experts_function
from nwc.compression.slots import Slot
from nwc.compression.source import SourceCheckpoint
from nwc.compression.towers import find_image_encoder, within
from nwc.errors import FormatError

_RENAMED = ((".mlp.", ".block_sparse_moe."),)
"""Parts of names that differ between transformers and the files on the hub (Mixtral's family)."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model without its weights.

    Args:
        model: parameters on the meta device, buffers real.
        blocks_path: path of the list of blocks that calibration reaches.
        keys: checkpoint key of every parameter that is one tensor there; tied ones share theirs.
        fused: for the other parameters, the checkpoint keys of their parts and where these lie.
        body_path: path of the module that calibration runs: the blocks, what is before them, and
            what is after them but the head of a language model.
        inputs: name of what the body takes.
        further_blocks: paths of lists of blocks outside the body; the text encoder of CLIP.
    """

    model: nn.Module
    blocks_path: str
    keys: dict[str, str]
    fused: dict[str, dict[str, Slot]] = field(default_factory=dict)
    body_path: str = ""
    inputs: str = TOKENS
    further_blocks: tuple[str, ...] = ()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks that calibration reaches."""
        found = self.model.get_submodule(self.blocks_path)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def takes_images(self) -> bool:
        """Whether calibration needs images; otherwise it needs text."""
        return self.inputs == IMAGES

    @property
    def classifies(self) -> bool:
        """Whether the model ends in the logits of its own classes."""
        return self.takes_images and is_classifier(self.model)

    def window_tokens(self, windows: Tensor) -> int:
        """Features that the blocks receive for one calibration window.

        Args:
            windows: tokens [windows, context], or images [windows, channels, height, width], for
                which the few features beside the patches are not counted.
        """
        if not self.takes_images:
            return windows.shape[1]
        config: Any = self.model.config
        patch = getattr(getattr(config, "vision_config", config), "patch_size", 16)
        height, width = (patch, patch) if isinstance(patch, int) else patch
        return max(1, (windows.shape[-2] // height) * (windows.shape[-1] // width))

    def run_body(self, batch: Tensor) -> Any:  # noqa: ANN401  (of transformers)
        """Send a batch of calibration windows through the body."""
        if not self.takes_images:
            body = getattr(self.model, "base_model", self.model)
            return body(input_ids=batch, use_cache=False)
        body = self.model.get_submodule(self.body_path)
        # Not every model brings images to the dtype of its weights.
        dtype = next(p.dtype for p in body.parameters() if not p.is_meta)
        return body(pixel_values=batch.to(dtype))


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built inside keep their buffers but hold no memory for parameters."""
    register = nn.Module.register_parameter

    def register_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:  # a tie stays one parameter
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def find_skeleton(source: SourceCheckpoint) -> tuple[Skeleton | None, str]:
    """The model that config.json describes, or the reason why there is none.

    Raises:
        FormatError: there is one, but the tensors have other shapes.
    """
    from transformers import AutoConfig

    why_not = "transformers knows none of this kind"
    try:
        config: Any = AutoConfig.from_pretrained(source.folder)
        for kind in model_classes(config):
            with _parameters_on_meta():
                model = kind._from_config(settings_for(kind, config)).eval()
            skeleton, why_not = _fit(model, source)
            if skeleton is not None:
                return skeleton, ""
    except (ValueError, KeyError, OSError, json.JSONDecodeError, TypeError) as error:
        why_not = str(error).splitlines()[0]
    else:
        if model_classes(config):
            return None, why_not
    return None, f"config.json names no causal language model and none of images ({why_not})"


def _fit(
    model: Any,  # noqa: ANN401  (of transformers)
    source: SourceCheckpoint,
) -> tuple[Skeleton | None, str]:
    """The skeleton of a model, or why the checkpoint does not fill it."""
    lists = [
        (sum(p.numel() for p in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    if not lists:
        return None, f"{type(model).__name__} has no list of blocks"
    keys = _match(model, source)
    skeleton = Skeleton(model=model, blocks_path=max(lists)[1], keys=keys, fused={})
    if IMAGES in inputs_of(model):
        encoder = find_image_encoder(model)
        if encoder is None:
            return None, f"{type(model).__name__} has no list of blocks that are alike"
        skeleton = replace(skeleton, inputs=IMAGES, **encoder._asdict())
    missing = _match_fused(skeleton, source)
    if missing:
        return None, f"{len(missing)} parameters of the model are missing, {missing[0]} first"
    blocks = skeleton.blocks_path
    if skeleton.fused or any(
        p.dim() == 3 for n, p in model.named_parameters() if within(n, blocks)
    ):
        use_experts_function(model)
    for name, key in skeleton.keys.items():
        _check_shape(source, key, tuple(model.get_parameter(name).shape))
    for name, parts in skeleton.fused.items():
        parameter = model.get_parameter(name)
        for key, slot in parts.items():
            _check_shape(source, key, tuple(slot.view(parameter).shape))
    return skeleton, ""


def _match(model: nn.Module, source: SourceCheckpoint) -> dict[str, str]:
    """Checkpoint keys of parameters that are one tensor on disk."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    renamed = _renamed(model, source)
    keys = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        for spelling in (name, *(name.replace(here, there) for here, there in _RENAMED)):
            for key in (spelling, spelling.removeprefix(prefix), prefix + spelling):
                if name not in keys and key in source.shapes:
                    keys[name] = key
        for spelling in (name, name.removeprefix(prefix), prefix + name):
            if name not in keys and spelling in renamed:
                keys[name] = renamed[spelling]
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for name, other in ties.items():
        if name not in keys and other in keys:
            keys[name] = keys[other]
    return keys


def _renamed(model: nn.Module, source: SourceCheckpoint) -> dict[str, str]:
    """Keys of the checkpoint by what transformers calls them when it loads it.

    Files on the hub keep the names under which a model was published, and transformers goes on
    saving under these, whatever its modules are called today.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    rules = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
    found = {}
    for key in sorted(source.shapes):
        name = key
        for rule in rules:
            name = rule.rename_source_key(name)[0]
        found[name] = key
    return found


def _match_fused(skeleton: Skeleton, source: SourceCheckpoint) -> list[str]:
    """Fill `fused`; returns the parameters that the checkpoint lacks."""
    missing = []
    prefix = skeleton.blocks_path + "."
    for name, parameter in skeleton.model.named_parameters():
        if name in skeleton.keys:
            continue
        parts: dict[str, Slot] = {}
        for spelling in (name, *(name.replace(here, there) for here, there in _RENAMED)):
            inner = name.removeprefix(prefix).partition(".")[2]
            found = expert_slots(spelling, inner, parameter)
            parts = next((p for p in found if all(key in source.shapes for key in p)), parts)
        if parts:
            skeleton.fused[name] = parts
        else:
            missing.append(name)
    return missing


def _check_shape(source: SourceCheckpoint, key: str, wanted: tuple[int, ...]) -> None:
    if source.shapes[key] != wanted:
        raise FormatError(
            f"{key} is {list(source.shapes[key])}, config.json asks for {list(wanted)}; "
            "the config belongs to another checkpoint"
        )
