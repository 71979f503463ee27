"""What a run will take, before anything is loaded in full: memory, disk, time.

Memory and disk are added up from shapes. Time comes from timing small pieces of the same work on
this machine for about a second; the run itself replaces it by what it sees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nwc.coding.tables import TableBank
from nwc.compression.executor import Job
from nwc.compression.plan import Plan, PlannedTensor, require_skeleton
from nwc.compression.source import SourceCheckpoint
from nwc.methods.base import LayerMethod, LayerWeight

_IMPORTS_BYTES = 450_000_000
"""Python with torch, transformers and numba."""

_BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take.

    Args:
        memory_bytes: peak of one worker.
        disk_bytes: peak beside the output while the run goes on.
        seconds: from begin to end, with the workers that were asked for.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds that small pieces of the work take on one machine.

    Args:
        column, weight: of compressing a matrix, for every column and every weight.
        product: a multiplication and addition of a matrix product in 16, 32 and 64 bits.
    """

    column: float
    weight: float
    product: Mapping[torch.dtype, float]

    @classmethod
    def measure(cls, method: LayerMethod, *, calibrated: bool) -> Speed:
        """Time the pieces, here and now: about a second."""
        column, weight = _coding_speed(method, calibrated)
        dtypes = (torch.bfloat16, torch.float32, torch.float64)
        product = {dtype: _product_time(dtype) for dtype in dtypes}
        return cls(column=column, weight=weight, product=product)


def preflight(
    plan: Plan,
    source: SourceCheckpoint,
    job: Job,
    windows: Tensor | None,
    workers: int = 1,
    speed: Speed | None = None,
) -> Forecast:
    """Predict a run.

    Args:
        plan: what will be compressed.
        source: the checkpoint.
        job: how.
        windows: calibration tokens or images, if there are any.
        workers: processes.
        speed: of the machine; measured if it is not given.
    """
    speed = speed or Speed.measure(job.method, calibrated=windows is not None)
    largest = max(plan.units, key=lambda unit: sum(t.parameters for t in unit))
    return Forecast(
        memory_bytes=_memory(plan, source, job, largest, calibrated=windows is not None),
        disk_bytes=_disk(plan, source, job, largest, windows),
        seconds=_seconds(plan, job, windows, speed) / max(1, min(workers, len(plan.units))),
    )


def _memory(
    plan: Plan,
    source: SourceCheckpoint,
    job: Job,
    unit: list[PlannedTensor],
    *,
    calibrated: bool,
) -> int:
    weights = sum(t.parameters for t in unit)
    stacked = max(_shared(unit), key=lambda ts: sum(t.parameters for t in ts))
    # W^T, the corrected copy, the errors, the symbols; weights and errors again when measured.
    work = 4 * 5 * sum(t.parameters for t in stacked)
    if not calibrated:
        return _IMPORTS_BYTES + work
    inputs = {(t.module, t.n, t.part if t.role else None) for t in unit}
    hessians = sum(4 * n * n for _, n, _ in inputs)
    widest = max(t.n for t in unit)
    factor = 3 * widest * widest * (8 if widest <= 4096 else 4)
    block = weights * (4 if job.recovery else source.tensor_itemsize(unit[0].key))
    tuning = 0
    if job.recovery is not None:
        # Two moments, copies in 16 bits for autocast, and what the graph keeps of a batch.
        tuning = 10 * weights + hessians + 4 * _BATCH_TOKENS * 3 * sum(t.m for t in unit)
    embedding = sum(
        source.size(key) for key, why in plan.kept.items() if why == "embedding or head"
    )
    peak = max(hessians + factor + work, tuning)
    return _IMPORTS_BYTES + max(block + peak, embedding)


def _shared(unit: list[PlannedTensor]) -> list[list[PlannedTensor]]:
    """Matrices that are likely to share their input, and so are stacked."""
    groups: dict[object, list[PlannedTensor]] = {}
    for t in unit:
        parent = (t.module or t.name).rpartition(".")[0]
        groups.setdefault((parent, t.n, t.part, t.slot and t.slot.expert), []).append(t)
    return list(groups.values())


def _disk(
    plan: Plan,
    source: SourceCheckpoint,
    job: Job,
    unit: list[PlannedTensor],
    windows: Tensor | None,
) -> int:
    # Streams lie in the work folder while the output is assembled from them.
    compressed = sum(source.size(t.key) for t in plan.tensors if not t.part) // 3
    kept = sum(map(source.size, plan.kept))
    total = 2 * compressed + kept
    if windows is not None:
        width = min(t.n for t in unit)
        total += 3 * _tokens(plan, windows) * width * source.tensor_itemsize(unit[0].key)
    if job.recovery is not None:
        total += 2 * 4 * sum(t.parameters for t in unit)
    return total


def _tokens(plan: Plan, windows: Tensor) -> int:
    return len(windows) * require_skeleton(plan).window_tokens(windows)


def _seconds(plan: Plan, job: Job, windows: Tensor | None, speed: Speed) -> float:
    seconds = 0.0
    for unit in plan.units:
        for stack in _shared(unit):
            seconds += stack[0].n * speed.column
            seconds += sum(t.parameters for t in stack) * speed.weight
            if windows is not None:
                # Cholesky and accumulation of H are matrix products at heart.
                seconds += stack[0].n ** 3 * speed.product[torch.float64]
    if windows is None:
        return seconds
    tokens = _tokens(plan, windows)
    product, exact = speed.product[torch.bfloat16], speed.product[torch.float32]
    for unit in plan.units:
        weights = sum(t.parameters for t in unit if not t.role) + sum(
            t.parameters for t in unit if t.role
        ) // max(1, _experts(unit) // 2)
        inputs = sum(stack[0].n ** 2 for stack in _shared(unit) if not stack[0].role)
        seconds += 2 * tokens * (weights * product + inputs * exact)
        # The survey: forwards, forwards again for the gradient, and backwards.
        seen = min(tokens, job.survey_tokens)
        seconds += 2 * seen * (weights * (product + 2 * exact) + inputs * exact)
        if job.recovery is not None:
            stages = 3
            batch = min(_BATCH_TOKENS, tokens)
            steps = 3 * job.recovery.steps * batch * (product if job.recovery.bf16 else exact)
            checks = (1 + job.recovery.checks) * tokens * job.recovery.held_out * exact
            # Attention, norms and the optimiser about double what the products take.
            seconds += 2 * stages * 2 * weights * (steps + checks)
    return seconds


def _experts(unit: list[PlannedTensor]) -> int:
    return len({t.slot.expert for t in unit if t.role and t.slot is not None})


def _time(run: Callable[[], object]) -> float:
    run()
    took = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)


def _product_time(dtype: torch.dtype) -> float:
    """Seconds per multiplication and addition of a matrix product."""
    a = torch.ones(256, 512, dtype=dtype)
    b = torch.ones(512, 512, dtype=dtype)
    return _time(lambda: a @ b) / (2 * 256 * 512 * 512)


def _coding_speed(method: LayerMethod, calibrated: bool) -> tuple[float, float]:
    """Seconds per column and per weight of compressing a matrix."""
    n = 64
    generator = torch.Generator().manual_seed(0)
    took = []
    for m in (64, 2048):
        W = torch.randn(m, n, generator=generator)
        H = torch.eye(n) if calibrated else None
        layers = [LayerWeight(name="sample", W=W)]
        took.append(_time(lambda: method.compress(layers, H, 2.0, TableBank())))  # noqa: B023
    weight = max(0.0, (took[1] - took[0]) / (n * (2048 - 64)))
    return max(0.0, took[0] / n - 64 * weight), weight
