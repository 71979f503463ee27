"""A model without its weights, and which tensors of the checkpoint fill its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nwc.compression.experts import expert_slots, use_experts_function
from nwc.compression.slots import Slot
from nwc.compression.source import SourceCheckpoint
from nwc.errors import FormatError

_RENAMED = ((".mlp.", ".block_sparse_moe."),)
"""Parts of names that differ between transformers and the files on the hub (Mixtral's family)."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model without its weights.

    Args:
        model: parameters on the meta device, buffers real.
        blocks_path: path of the list of decoder blocks.
        keys: checkpoint key of every parameter that is one tensor there; tied ones share theirs.
        fused: for the other parameters, the checkpoint keys of their parts and where these lie.
    """

    model: nn.Module
    blocks_path: str
    keys: dict[str, str]
    fused: dict[str, dict[str, Slot]] = field(default_factory=dict)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        found = self.model.get_submodule(self.blocks_path)
        assert isinstance(found, nn.ModuleList)
        return found


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
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(source.folder)
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config).eval()
    except (ValueError, KeyError, OSError, json.JSONDecodeError, TypeError) as error:
        return None, f"config.json names no causal language model ({str(error).splitlines()[0]})"
    lists = [
        (sum(p.numel() for p in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    if not lists:
        return None, f"{type(model).__name__} has no list of blocks"
    skeleton = Skeleton(
        model=model, blocks_path=max(lists)[1], keys=_match(model, source), fused={}
    )
    missing = _match_fused(skeleton, source)
    if missing:
        return None, f"{len(missing)} parameters of the model are missing, {missing[0]} first"
    if skeleton.fused or any(p.dim() == 3 for p in model.parameters()):
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
    keys = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        for spelling in (name, *(name.replace(here, there) for here, there in _RENAMED)):
            for key in (spelling, spelling.removeprefix(prefix), prefix + spelling):
                if name not in keys and key in source.shapes:
                    keys[name] = key
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for name, other in ties.items():
        if name not in keys and other in keys:
            keys[name] = keys[other]
    return keys


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
