"""What to compress, from the model's structure: blocks, orientation, coverage.

A decoder block is a child of the model's largest `ModuleList`. Every 2-D weight in a block is
compressed, and every expert of a 3-D one; embeddings, the output head, vectors and biases are
kept; anything else 2-D or 3-D would be skipped, which is an error unless `--keep` names it.

Encoders of images have tokens, tables of positions, projections and pooling around their blocks,
all of which is kept (App. A.4: compression is applied to the blocks). Blocks that calibration does
not reach, as the text encoder's of CLIP, are compressed matrix by matrix, data-free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from nwc.compression.experts import is_transposed, role
from nwc.compression.skeleton import Skeleton, find_skeleton
from nwc.compression.slots import Slot
from nwc.compression.source import SourceCheckpoint
from nwc.compression.towers import within
from nwc.errors import ConfigError, FormatError


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A matrix that will be compressed.

    Args:
        key: its name in the checkpoint.
        m: outputs.
        n: inputs.
        part: index of the matrix in a tensor of three dimensions; None for a plain one.
        transposed: the checkpoint holds [n, m].
        block: index of its block; None in a folder of bare weights, and in blocks that calibration
            does not reach.
        module: path, inside its block, of the module whose first input is this matrix's, or of
            the experts that hold it; None if nothing is known to apply it, so that there are no
            inputs to calibrate with.
        slot: where it lies in the parameters of its block; None in a folder of bare weights.
        role: of an expert's matrix: gate, up, gate_up or down; empty for all others.
    """

    key: str
    m: int
    n: int
    part: int | None = None
    transposed: bool = False
    block: int | None = None
    module: str | None = None
    slot: Slot | None = None
    role: str = ""

    @property
    def name(self) -> str:
        """The key, and the part if there is one: unique in a checkpoint."""
        return self.key if self.part is None else f"{self.key}.{self.part}"

    @property
    def kind(self) -> str:
        """What it has in common with its like in other blocks: its path without numbers."""
        return ".".join(name for name in self.key.split(".") if not name.isdigit())

    @property
    def label(self) -> str:
        """What it is in its block: path of the module, and role in it."""
        path = self.slot.parameter if self.slot is not None else self.key
        return path.removesuffix(".weight") + (f" {self.role}" if self.role else "")

    @property
    def parameters(self) -> int:
        """Weights in the matrix."""
        return self.m * self.n


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

    @property
    def units(self) -> list[list[PlannedTensor]]:
        """What is compressed as one: a block, or a tensor of a folder of bare weights."""
        units: dict[object, list[PlannedTensor]] = {}
        for tensor in self.tensors:
            units.setdefault(tensor.key if tensor.block is None else tensor.block, []).append(
                tensor
            )
        return list(units.values())


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
    skeleton, why_not = (None, "no config.json") if config is None else find_skeleton(source)
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
            tensors += _bare_matrices(key, shape)
    # The last one makes up for what is missing to the target, so it should be large.
    return sorted(tensors, key=lambda t: t.parameters), skipped


def _plan_model(
    source: SourceCheckpoint, skeleton: Skeleton, kept: dict[str, str]
) -> tuple[list[PlannedTensor], list[tuple[str, str]]]:
    outside = set() if skeleton.takes_images else _embeddings_and_head(skeleton.model)
    # Parameter and place of every tensor; a tied tensor belongs to its first parameter.
    places: dict[str, tuple[str, Slot | None]] = {}
    for name, parts in skeleton.fused.items():
        places |= {key: (name, slot) for key, slot in parts.items()}
    for name, key in reversed(skeleton.keys.items()):
        places[key] = (name, None)
    buffers = {name for name, _ in skeleton.model.named_buffers()}
    found: list[PlannedTensor] = []
    skipped = []
    for key, shape in source.shapes.items():
        if key in kept:
            continue
        name, slot = places.get(key, ("", None))
        owner = skeleton.model.get_submodule(name.rpartition(".")[0])
        if len(shape) not in (2, 3):
            kept[key] = "not a matrix"
        elif name in outside or isinstance(owner, nn.Embedding):
            kept[key] = "embedding or head"
        elif name.endswith("bias"):
            kept[key] = "bias"
        elif not name and key in buffers:
            kept[key] = "no weight"
        elif not name:
            skipped.append((key, "the model has no such parameter"))
        elif within(name, skeleton.blocks_path):
            if why := _unfit(source, key):
                skipped.append((key, why))
            else:
                found += _matrices(skeleton, key, shape, name, slot)
        elif any(within(name, path) for path in skeleton.further_blocks):
            if why := _unfit(source, key):
                skipped.append((key, why))
            else:
                found += _bare_matrices(key, shape)
        elif skeleton.takes_images:
            kept[key] = "embedding or head"
        else:
            skipped.append((key, "outside the decoder blocks"))
    # In the order of the blocks; inside a block in the order that the model lists its parameters.
    # What calibration does not reach comes first: the last block makes up for what is missing.
    order = {name: i for i, (name, _) in enumerate(skeleton.model.named_parameters())}
    at = {t.name: order[places[t.key][0]] for t in found}
    return sorted(found, key=lambda t: (-1 if t.block is None else t.block, at[t.name])), skipped


def _bare_matrices(key: str, shape: tuple[int, ...]) -> list[PlannedTensor]:
    """The matrices of a tensor that is compressed without regard to what applies it."""
    m, n = shape[-2:]
    parts = [None] if len(shape) == 2 else range(shape[0])
    return [PlannedTensor(key=key, part=part, m=m, n=n) for part in parts]


def _matrices(
    skeleton: Skeleton, key: str, shape: tuple[int, ...], name: str, slot: Slot | None
) -> list[PlannedTensor]:
    """The matrices that one tensor of a decoder block holds."""
    from transformers.pytorch_utils import Conv1D

    number, _, inner = name.removeprefix(skeleton.blocks_path + ".").partition(".")
    path, _, leaf = inner.rpartition(".")
    owner = skeleton.model.get_submodule(name.rpartition(".")[0])
    experts = skeleton.model.get_parameter(name).dim() == 3
    transposed = isinstance(owner, Conv1D) or (experts and slot is None and is_transposed(owner))
    m, n = shape[-2:][::-1] if transposed else shape[-2:]
    # Of modules that hold a bare matrix, routers for one, only the name tells that they apply it.
    applied = experts or leaf == "weight"
    parts = range(shape[0]) if len(shape) == 3 else [None]
    return [
        PlannedTensor(
            key=key,
            m=m,
            n=n,
            part=part,
            transposed=transposed,
            block=int(number),
            module=path if applied else None,
            slot=slot or Slot(parameter=inner, expert=part, transposed=transposed),
            role=role(key, leaf) if experts else "",
        )
        for part in parts
    ]


def _unfit(source: SourceCheckpoint, key: str) -> str:
    """Why a tensor of two or three dimensions cannot be compressed; empty if it can."""
    shape = source.shapes[key]
    if source.is_float(key) and 0 not in shape:
        return ""
    return f"{source.dtypes[key]} {list(shape)}, wanted float matrices with weights in them"


def _embeddings_and_head(model: nn.Module) -> set[str]:
    outside = set()
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    get_embedding = getattr(model, "get_input_embeddings", lambda: None)
    for module in (get_head(), get_embedding()):
        for name, candidate in model.named_modules():
            if candidate is module:
                outside.add(f"{name}.weight")
    return outside


def require_skeleton(plan: Plan) -> Skeleton:
    """The plan's model.

    Raises:
        ConfigError: there is none, so that nothing can be calibrated.
    """
    if plan.skeleton is None:
        raise ConfigError(f"cannot calibrate: {plan.notes[0]}; use --data-free")
    return plan.skeleton
