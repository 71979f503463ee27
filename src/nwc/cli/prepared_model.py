"""A model changed as a whole before its matrices are quantised, for methods that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nwc.compression.plan import Plan, require_skeleton
from nwc.compression.skeleton import Skeleton
from nwc.compression.source import SourceCheckpoint
from nwc.errors import ConfigError
from nwc.formats.writer import FolderWriter
from nwc.methods.dense import DenseMethod, Matrix


def changed_model(
    method: DenseMethod,
    source: SourceCheckpoint,
    plan: Plan,
    windows: Tensor | None,
    folder: Path,
    on_progress: Callable[[float, str], None],
) -> Path:
    """The checkpoint that the method wants to quantise: the source, or a changed copy.

    Args:
        method: that asks for it.
        source: the original.
        plan: of the original.
        windows: calibration tokens, if there are any.
        folder: where a changed checkpoint goes, on the disk of the output; used again if it is
            there.
        on_progress: told which share of the work is done, and what was seen.

    Raises:
        ConfigError: the method cannot prepare a model of this kind.
    """
    if type(method).prepare is DenseMethod.prepare:
        return source.folder
    if folder.exists():
        return folder
    if require_skeleton(plan).takes_images:
        raise ConfigError(
            f"method {method.name} changes language models as a whole first, and knows no models "
            "of images; use another"
        )
    from transformers import AutoModelForCausalLM

    skeleton = require_skeleton(plan)
    method.matrices = [
        Matrix(t.name, t.kind, f"{skeleton.blocks_path}.{t.block}.{t.slot.parameter}", t.slot.view)
        for t in plan.tensors
        if t.slot is not None
    ]
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    prepared = method.prepare(model, windows, on_progress)
    if prepared is None:
        return source.folder
    del model
    changed = _by_key(skeleton, source, prepared.parameters)
    with FolderWriter(
        folder, source.folder, scratch=folder.with_name(f"{folder.name}.partial")
    ) as writer:
        for key in source.shapes:
            dtype = source.dtype(key) if source.is_float(key) else None
            value = changed.pop(key, None)
            writer.add(key, source.tensor(key) if value is None else value.to(dtype).contiguous())
        for key, value in changed.items():
            writer.add(key, value)
        writer.finish({**(source.config or {}), **prepared.config}, {"format": "pt"})
        writer.publish()
    return folder


def _by_key(
    skeleton: Skeleton, source: SourceCheckpoint, parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What changed as the checkpoint holds it: fused parameters in their parts."""
    owners = {key: name for name, key in reversed(skeleton.keys.items())}
    changed: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        value, key = parameter.cpu(), skeleton.keys.get(name, name)
        if name in skeleton.fused:
            changed |= {key: slot.view(value) for key, slot in skeleton.fused[name].items()}
        elif owners.get(key, name) != name:  # tied so far, and no more
            changed[name] = value.to(source.dtype(key))
        else:
            changed[key] = value
    return changed
