"""What to compress, from the model's structure: blocks, orientation, coverage.

A decoder block is a child of the model's largest `ModuleList`. Every 2-D weight in a block is
compressed; embeddings, the output head and vectors are kept; anything else 2-D or 3-D would be
skipped, which is an error unless `--keep` names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nwc.compression.source import SourceCheckpoint
from nwc.errors import ConfigError, FormatError


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A matrix that will be compressed.

    Args:
        key: its name in the checkpoint.
        m: outputs.
        n: inputs.
        transposed: the checkpoint holds [n, m].
        block: index of its decoder block; None in a folder of bare weights.
        module: path of the linear module that applies it, inside its block; None if no module
            does, so that there are no inputs to calibrate with.
    """

    key: str
    m: int
    n: int
    transposed: bool = False
    block: int | None = None
    module: str | None = None

    @property
    def parameters(self) -> int:
        """Weights in the matrix."""
        return self.m * self.n


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model without its weights.

    Args:
        model: parameters on the meta device, buffers real.
        blocks_path: path of the list of decoder blocks.
        keys: checkpoint key of every parameter; tied ones share theirs.
    """

    model: nn.Module
    blocks_path: str
    keys: dict[str, str]

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        found = self.model.get_submodule(self.blocks_path)
        assert isinstance(found, nn.ModuleList)
        return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Coverage of a checkpoint: each of its tensors is in exactly one of the two lists.

    Args:
        tensors: matrices to compress, block by block.
        kept: key -> why it is copied as it is.
        skeleton: the model, if the folder's config names one that fits its tensors.
        notes: what the user should know.
    """

    tensors: list[PlannedTensor]
    kept: dict[str, str]
    skeleton: Skeleton | None
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Weights that will be compressed."""
        return sum(t.parameters for t in self.tensors)


def make_plan(source: SourceCheckpoint, keep: tuple[str, ...] = ()) -> Plan:
    """Plan a checkpoint.

    Args:
        source: the checkpoint.
        keep: patterns of keys to leave as they are.

    Raises:
        FormatError: it is compressed already, or nothing in it can be compressed.
        ConfigError: a matrix would be skipped, or a pattern matches nothing.
    """
    config = source.config
    if config is not None and "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise FormatError(
            f"{source.folder} is already quantised ({method}); compress the original checkpoint"
        )
    kept = {key: f"--keep {pattern}" for pattern in keep for key in source.matching(pattern)}
    skeleton, why_not = (None, "no config.json") if config is None else _skeleton(source)
    notes = []
    if skeleton is None:
        notes.append(f"planned from tensor shapes alone: {why_not}")
        tensors, skipped = _plan_bare(source, kept)
    else:
        tensors, skipped = _plan_model(source, skeleton, kept)
    if skipped:
        shown = "".join(f"\n  {key} {list(source.shapes[key])}: {why}" for key, why in skipped)
        patterns = " ".join(f"--keep '{key}'" for key, _ in skipped[:8])
        raise ConfigError(
            f"{len(skipped)} tensors would be skipped:{shown}\n"
            f"If that is meant, say so: {patterns}{' ...' if len(skipped) > 8 else ''}"
        )
    if not tensors:
        raise FormatError(f"nothing to compress in {source.folder}: no 2-D weight is left")
    return Plan(tensors=tensors, kept=kept, skeleton=skeleton, notes=notes)


def _plan_bare(
    source: SourceCheckpoint, kept: dict[str, str]
) -> tuple[list[PlannedTensor], list[tuple[str, str]]]:
    tensors, skipped = [], []
    for key, shape in source.shapes.items():
        if key in kept:
            continue
        if len(shape) not in (2, 3):
            kept[key] = "not a matrix"
        elif why := _unfit(source, key):
            skipped.append((key, why))
        else:
            tensors.append(PlannedTensor(key=key, m=shape[0], n=shape[1]))
    return tensors, skipped


def _plan_model(
    source: SourceCheckpoint, skeleton: Skeleton, kept: dict[str, str]
) -> tuple[list[PlannedTensor], list[tuple[str, str]]]:
    from transformers.pytorch_utils import Conv1D

    model = skeleton.model
    outside = _embeddings_and_head(model)
    names = {key: name for name, key in reversed(skeleton.keys.items())}
    found: list[PlannedTensor] = []
    skipped = []
    prefix = skeleton.blocks_path + "."
    for key, shape in source.shapes.items():
        if key in kept:
            continue
        name = names.get(key)
        owner, leaf = (name or "").rpartition(".")[::2]
        module = model.get_submodule(owner) if name else None
        if len(shape) not in (2, 3):
            kept[key] = "not a matrix"
        elif name in outside or isinstance(module, nn.Embedding):
            kept[key] = "embedding or head"
        elif name is None:
            skipped.append((key, "the model has no such parameter"))
        elif not name.startswith(prefix):
            skipped.append((key, "outside the decoder blocks"))
        elif why := _unfit(source, key):
            skipped.append((key, why))
        else:
            number, _, inner = owner.removeprefix(prefix).partition(".")
            linear = leaf == "weight" and isinstance(module, nn.Linear | Conv1D)
            transposed = isinstance(module, Conv1D)
            m, n = shape[::-1] if transposed else shape
            found.append(
                PlannedTensor(
                    key=key, m=m, n=n, transposed=transposed, block=int(number),
                    module=inner if linear else None,
                )
            )  # fmt: skip
    # In the order of the blocks; inside a block in the order that the model lists its parameters.
    order = {key: i for i, key in enumerate(skeleton.keys.values())}
    return sorted(found, key=lambda t: (t.block, order[t.key])), skipped


def _unfit(source: SourceCheckpoint, key: str) -> str:
    """Why a tensor of two or three dimensions cannot be compressed; empty if it can."""
    shape = source.shapes[key]
    if len(shape) == 2 and source.is_float(key) and 0 not in shape:
        return ""
    return f"{source.dtypes[key]} {list(shape)}, wanted a float matrix with weights in it"


def _embeddings_and_head(model: nn.Module) -> set[str]:
    outside = set()
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    get_embedding = getattr(model, "get_input_embeddings", lambda: None)
    for module in (get_head(), get_embedding()):
        for name, candidate in model.named_modules():
            if candidate is module:
                outside.add(f"{name}.weight")
    return outside


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


def _skeleton(source: SourceCheckpoint) -> tuple[Skeleton | None, str]:
    """The model that config.json describes, or the reason why there is none."""
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
    prefix = getattr(model, "base_model_prefix", "") + "."
    keys = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        for key in (name, name.removeprefix(prefix), prefix + name):
            if key in source.shapes:
                keys[name] = key
                break
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for name, other in ties.items():
        if name not in keys and other in keys:
            keys[name] = keys[other]
    missing = [n for n, _ in model.named_parameters() if n not in keys]
    if missing:
        return None, f"{len(missing)} parameters of the model are missing, {missing[0]} first"
    for name, key in keys.items():
        wanted = tuple(model.get_parameter(name).shape)
        if source.shapes[key] != wanted:
            raise FormatError(
                f"{key} is {list(source.shapes[key])}, config.json asks for {list(wanted)}; "
                "the config belongs to another checkpoint"
            )
    return Skeleton(model=model, blocks_path=max(lists)[1], keys=keys), ""


def require_skeleton(plan: Plan) -> Skeleton:
    """The plan's model.

    Raises:
        ConfigError: there is none, so that nothing can be calibrated.
    """
    if plan.skeleton is None:
        raise ConfigError(f"cannot calibrate: {plan.notes[0]}; use --data-free")
    return plan.skeleton
