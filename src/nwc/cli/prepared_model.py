"""A model changed as a whole before its matrices are quantised, for methods that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nwc.compression.plan import Plan, require_skeleton
from nwc.compression.source import SourceCheckpoint
from nwc.formats.writer import FolderWriter
from nwc.methods.dense import DenseMethod


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
    """
    if type(method).prepare is DenseMethod.prepare:
        return source.folder
    if folder.exists():
        return folder
    from transformers import AutoModelForCausalLM

    keys = require_skeleton(plan).keys
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    prepared = method.prepare(model, windows, on_progress)
    if prepared is None:
        return source.folder
    del model
    owners = {key: name for name, key in reversed(keys.items())}
    changed: dict[str, Tensor] = {}
    ties = {}
    for name, parameter in prepared.parameters.items():
        key = keys.get(name, name)
        if owners.get(key, name) != name:  # tied so far
            ties[name], key = key, name
        changed[key] = parameter
    with FolderWriter(
        folder, source.folder, scratch=folder.with_name(f"{folder.name}.partial")
    ) as writer:
        for key in source.shapes:
            dtype = source.dtype(key) if source.is_float(key) else None
            value = changed.pop(key, None)
            writer.add(key, source.tensor(key) if value is None else value.cpu().to(dtype))
        for key, value in changed.items():
            writer.add(key, value.cpu().to(source.dtype(ties[key]) if key in ties else None))
        writer.finish({**(source.config or {}), **prepared.config}, {"format": "pt"})
        writer.publish()
    return folder
