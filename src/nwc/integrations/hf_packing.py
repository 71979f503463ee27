"""Which parameters of a transformers model can stay compressed, and how they are put together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from nwc.formats.checkpoint import Checkpoint
from nwc.integrations.packed import PackedMatrix, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sources = dict[str | None, list[str]]
"""Tensors of a checkpoint that one parameter is made of: those that match the same pattern of a
converter, in order; or one under None that only has another name."""


def sources(model: PreTrainedModel, keys: list[str], mapping: list[Any]) -> dict[str, Sources]:
    """What each parameter is made of.

    Args:
        model: whose parameters.
        keys: names of the checkpoint.
        mapping: how transformers converts the checkpoint: `WeightRenaming`, `WeightConverter`.
    """
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, Sources] = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, pattern = key, None
        if name in own:
            found.setdefault(name, {}).setdefault(pattern, []).append(key)
    return found


def pack_model(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    made_of: Mapping[str, Sources],
    load_config: Any,  # noqa: ANN401  (LoadStateDictConfig)
) -> set[str]:
    """Replace the parameters that can stay compressed.

    Args:
        model: as built, without weights.
        checkpoint: with its weights.
        made_of: see `sources`.
        load_config: of transformers.

    Returns:
        The names in the checkpoint that need not be loaded any more.
    """
    plan = getattr(load_config, "dtype_plan", None) or getattr(model, "dtype_plan", None) or {}
    apart = [re.compile(pattern.replace("*", ".*")) for pattern in plan]
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    done: set[str] = set()
    stacks = False
    for name, parts in made_of.items():
        if name in tied or any(pattern.search(name) for pattern in apart):
            continue
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = module._parameters.get(leaf)
        if parameter is None or isinstance(module, nn.Embedding):
            continue
        packed = _packed(checkpoint, parts, load_config.weight_mapping or [])
        if packed is None or _shape(packed) != tuple(parameter.shape):
            continue  # transformers loads it, or says why it cannot
        pack(module, leaf, packed, load_config.dtype or parameter.dtype)
        done |= {key for keys in parts.values() for key in keys}
        stacks = stacks or isinstance(packed, list)
    if stacks:
        # The one way to run experts that looks at them one by one.
        model.set_experts_implementation("eager")
    return done


def _packed(
    checkpoint: Checkpoint, parts: Sources, mapping: list[Any]
) -> PackedMatrix | list[PackedMatrix] | None:
    """The compressed form of a parameter; None if it has to be put together otherwise."""
    compressed = set(checkpoint.compressed_keys())
    operations, order = _conversion(parts, mapping)
    if not operations:
        keys = [key for each in parts.values() for key in each]
        if len(keys) > 1:
            return None
        if keys[0] in compressed:
            return PackedMatrix(checkpoint, keys)
        matrices = checkpoint.matrices(keys[0])
        return [PackedMatrix(checkpoint, [matrix]) for matrix in matrices] or None
    if not all(key in compressed for keys in parts.values() for key in keys):
        return None
    merge, *join = operations
    dim = 1
    if not isinstance(merge, MergeModulelist) or merge.dim != 0 or len(join) > 1:
        return None
    if join:
        if not isinstance(join[0], Concatenate) or join[0].dim not in (1, 2):
            return None
        dim = join[0].dim
    if len({len(parts[p]) for p in order}) != 1 or (len(order) > 1 and not join):
        return None
    experts = zip(*(parts[p] for p in order), strict=True)
    return [PackedMatrix(checkpoint, keys, dim - 1) for keys in experts]


def _conversion(parts: Sources, mapping: list[Any]) -> tuple[list[Any], list[str | None]]:
    """What is done to the tensors of a parameter, and the order of their patterns."""
    if None in parts:
        return [], [None]
    converter = next(
        entry
        for entry in mapping
        if isinstance(entry, WeightConverter) and set(parts) <= set(entry.source_patterns)
    )
    operations = [each for each in converter.operations if not _is_identity(each)]
    return operations, [p for p in converter.source_patterns if p in parts]


def _is_identity(operation: object) -> bool:
    """Whether an operation leaves a tensor as it is that has the shape of its parameter."""
    # The first is a transposition that looks at the shape, the second one for kernels of others.
    return (
        getattr(operation, "check_dims", False)
        or type(operation).__name__ == "Force16BytesAlignment"
    )


def _shape(packed: PackedMatrix | list[PackedMatrix]) -> tuple[int, ...]:
    if isinstance(packed, PackedMatrix):
        return packed.shape
    return len(packed), *packed[0].shape
