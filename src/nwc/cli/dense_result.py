"""The end of `nwc compress` for methods without a file format: dense weights, budgets beside them.

The folder is an ordinary checkpoint that any tool reads. Its report says which bits the method's
own codes would take, by the method's formula, and that these are not the bits of the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nwc.cli.result import PUBLISHED, card_and_report, make_report
from nwc.coding.rate import BitBudget
from nwc.compression.pipeline import CompressedUnit
from nwc.formats.kept import KeptDigest
from nwc.formats.writer import FolderWriter
from nwc.methods.dense import unpack

if TYPE_CHECKING:
    from nwc.cli.preparation import Preparation


def write_dense_result(
    preparation: Preparation, units: list[CompressedUnit], *, replace: bool
) -> list[str]:
    """Write the output folder, replacing one if that is allowed; returns warnings."""
    changed, distillation = preparation.distilled(units)
    source, plan = preparation.source, preparation.plan
    planned = {t.name: t for t in plan.tensors}
    blocks: list[dict[str, Any]] = []
    tuned: dict[str, Tensor] = {}
    for unit in units:
        found, history = unit.tuned()
        tuned |= found
        if history:
            blocks.append({"block": unit.block, "groups": history})
    tuned |= changed
    about: dict[str, dict[str, Any]] = {}
    budgets: dict[str, BitBudget] = {}
    warnings: list[str] = []
    digest = KeptDigest()
    with FolderWriter(
        preparation.options.output, source.folder, overwrite=replace,
        scratch=preparation.work.path / "output",
    ) as writer:  # fmt: skip

        def add(key: str, tensor: Tensor) -> None:
            writer.add(key, tensor)
            digest.add(key, tensor)

        for key in plan.kept:
            add(key, tuned.get(key, source.tensor(key)))
        stacks: dict[str, list[Tensor]] = {}
        for unit in units:
            for group in unit.groups():
                warnings += group.warnings
                for finished in group.tensors:
                    tensor = planned[finished.name]
                    weight, budgets[finished.name] = unpack(finished.data)
                    about[finished.name] = finished.facts()
                    weight = weight.to(source.dtype(tensor.key))
                    if tensor.part is None:
                        add(tensor.key, weight)
                        continue
                    stack = stacks.setdefault(tensor.key, [])
                    stack.append(weight)
                    if len(stack) == source.shapes[tensor.key][0]:
                        add(tensor.key, torch.stack(stacks.pop(tensor.key)))
        assert not stacks, "a tensor of three dimensions is not complete"
        scratch = writer.finish(source.config, {"format": "pt"})
        found_bits = _inspection(preparation, budgets, scratch)
        report = make_report(preparation, found_bits, about, blocks, warnings)
        report |= {"distillation": distillation, "hash": digest.hexdigest()}
        preparation.work.write_json(PUBLISHED, report["hash"])
        writer.publish(card_and_report(report))
    return warnings


def _inspection(
    preparation: Preparation, budgets: dict[str, BitBudget], folder: Path
) -> dict[str, Any]:
    """See `cli.inspect.inspection`."""
    plan, source = preparation.plan, preparation.source
    total = sum(budgets.values(), BitBudget())
    kept = sum(map(source.count, plan.kept))
    everything = total.total + sum(map(source.size, plan.kept))
    return {
        "file_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "compressed_parameters": plan.parameters,
        "kept_parameters": kept,
        "bits_per_parameter": {
            "tensors": 8 * total.total / plan.parameters,
            "file": 8 * everything / (plan.parameters + kept),
            **total.bits_per(plan.parameters),
        },
        "tensors": [
            {
                "name": t.name,
                "bits_per_parameter": 8 * budgets[t.name].total / t.parameters,
                "bytes": budgets[t.name].total,
            }
            for t in plan.tensors
        ],
    }
