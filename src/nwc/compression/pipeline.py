"""The generator at the heart of `nwc compress`: a plan in, compressed layers out.

It yields and does not write; whoever iterates decides where the layers go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from nwc.coding.tables import TableBank
from nwc.compression.plan import Plan, PlannedTensor
from nwc.compression.rate_control import RateController
from nwc.compression.source import SourceCheckpoint
from nwc.compression.stream import BlockStream, Group
from nwc.methods.base import CompressedLayer, LayerMethod, LayerWeight

TOLERANCE = 0.002
"""Relative deviation from the target below which the last group is not compressed again."""


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
    report = report or Report()
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
            yield from _compress_group(source, group, method, controller, bank, report, left == 0)


def _compress_group(
    source: SourceCheckpoint,
    group: Group,
    method: LayerMethod,
    controller: RateController,
    bank: TableBank,
    report: Report,
    last: bool,
) -> list[CompressedLayer]:
    H = _hessian(group, report)
    layers = [
        LayerWeight(name=t.key, W=source.matrix(t.key, t.transposed), transposed=t.transposed)
        for t in group.tensors
    ]
    results = _compress(method, layers, H, controller, bank)
    # Nothing comes after the last group that could absorb its error: aim again.
    for _ in range(4 if last else 0):
        if abs(controller.deviation) <= TOLERANCE:
            break
        controller.retry([layer.name for layer in layers])
        results = _compress(method, layers, H, controller, bank)
    for result in results:
        if result.errors.damping > 0.001:
            report.damping[result.name] = result.errors.damping
    return results


def _compress(
    method: LayerMethod,
    layers: list[LayerWeight],
    H: Tensor | None,
    controller: RateController,
    bank: TableBank,
) -> list[CompressedLayer]:
    results = method.compress(layers, H, controller.log2_gain, bank)
    # 75: the entry in the shard's header around the name.
    controller.record({r.name: len(r.data) + 75 + len(r.name) for r in results})
    return results


def _hessian(group: Group, report: Report) -> Tensor | None:
    names = _names(group.tensors)
    if group.hessian is None:
        report.warnings.append(f"{names}: saw no calibration inputs; compressed without feedback")
        return None
    if group.hessian.non_finite:
        report.warnings.append(
            f"{names}: {group.hessian.non_finite} calibration tokens with non-finite inputs left out"
        )
    return group.hessian.mean()


def _names(tensors: list[PlannedTensor]) -> str:
    return ", ".join(t.key for t in tensors)
