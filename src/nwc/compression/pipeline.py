"""The generator at the heart of `nwc compress`: a plan in, compressed layers out.

It yields and does not write; whoever iterates decides where the layers go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from nwc.coding.tables import TableBank
from nwc.compression.plan import Plan
from nwc.compression.rate_control import RateController
from nwc.compression.source import SourceCheckpoint
from nwc.compression.stream import BlockStream, Group
from nwc.methods.base import CompressedLayer, LayerMethod, LayerWeight
from nwc.numerics.ldlq import DAMPING_LADDER

TOLERANCE = 0.002
"""Relative deviation from the target below which the last group is not compressed again."""

RETRIES = 4
"""How often the last group is compressed again at most."""


@dataclass
class Report:
    """What happened while compressing.

    Args:
        warnings: for the user.
        damping: layer -> multiple of mean(diag H), where more than the first rung was needed.
    """

    warnings: list[str] = field(default_factory=list)
    damping: dict[str, float] = field(default_factory=dict)


def compress_model(
    source: SourceCheckpoint,
    plan: Plan,
    method: LayerMethod,
    controller: RateController,
    bank: TableBank,
    *,
    stream: BlockStream | None = None,
    report: Report | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Iterator[CompressedLayer]:
    """Compress everything that is planned.

    Args:
        source: the checkpoint.
        plan: what to compress.
        method: how.
        controller: which gain to use.
        bank: tables that the layers share; complete when the iteration ends.
        stream: calibration; None compresses without (data-free).
        report: filled as the work goes on.
        on_batch: called as calibration advances.
    """
    report = Report() if report is None else report
    groups: Iterator[list[Group]]
    if stream is None:
        groups = ([Group(tensors=[t], hessian=None)] for t in plan.tensors)
    else:
        groups = stream.groups(plan.tensors, on_batch)
    left = len(plan.tensors)
    for block in groups:
        while block:
            # Each group's Hessian is released before the next one is worked on.
            group = block.pop(0)
            left -= len(group.tensors)
            H = None if stream is None else _hessian(group, report)
            layers = [
                LayerWeight(
                    name=t.key, W=source.matrix(t.key, t.transposed), transposed=t.transposed
                )
                for t in group.tensors
            ]
            results = _on_target(method, layers, H, controller, bank, last=left == 0)
            for result in results:
                if result.errors.damping > DAMPING_LADDER[0]:
                    report.damping[result.name] = result.errors.damping
            yield from results


def _on_target(
    method: LayerMethod,
    layers: list[LayerWeight],
    H: Tensor | None,
    controller: RateController,
    bank: TableBank,
    *,
    last: bool,
) -> list[CompressedLayer]:
    """Compress a group; the last one, after which nothing absorbs its error, until it fits."""
    for _ in range(RETRIES if last else 0):
        results = method.compress(layers, H, controller.log2_gain, bank)
        controller.record({r.name: len(r.data) for r in results})
        if abs(controller.deviation) <= TOLERANCE:
            return results
        controller.retry([layer.name for layer in layers])
    results = method.compress(layers, H, controller.log2_gain, bank)
    controller.record({r.name: len(r.data) for r in results})
    return results


def _hessian(group: Group, report: Report) -> Tensor | None:
    names = ", ".join(t.key for t in group.tensors)
    if group.hessian is None:
        report.warnings.append(f"{names}: saw no calibration inputs; compressed without feedback")
        return None
    if group.hessian.non_finite:
        report.warnings.append(
            f"{names}: left out {group.hessian.non_finite} calibration tokens with non-finite "
            "inputs"
        )
    return group.hessian.finish()
