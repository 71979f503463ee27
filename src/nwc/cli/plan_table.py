"""What `nwc compress --dry-run` prints."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.table import Table

from nwc.cli.console import duration, out, print_json
from nwc.compression.plan import PlannedTensor
from nwc.compression.preflight import preflight

if TYPE_CHECKING:
    from nwc.cli.preparation import Preparation


def show_plan(preparation: Preparation, *, as_json: bool) -> None:
    """Print what would be done and what it would take."""
    options, plan, source = preparation.options, preparation.plan, preparation.source
    forecast = preflight(
        plan, source, preparation.job, preparation.windows, workers=options.workers
    )
    if as_json:
        print_json({
            "tensors": [
                {"name": t.name, "shape": [t.m, t.n], "block": t.block, "role": t.role}
                for t in plan.tensors
            ],
            "kept": plan.kept,
            "compressed_parameters": plan.parameters,
            "recovery": preparation.job.recovery is not None,
            "order": preparation.job.order,
            **dataclasses.asdict(forecast),
        })  # fmt: skip
        return
    table = Table("block", "group", "tensor", "outputs x inputs", "weights", box=None)
    for t in plan.tensors[:_SHOWN]:
        block = "-" if t.block is None else str(t.block)
        table.add_row(block, _group(t), t.name, f"{t.m} x {t.n}", f"{t.parameters:,}")
    out.print(table)
    if len(plan.tensors) > _SHOWN:
        out.print(f"... and {len(plan.tensors) - _SHOWN:,} more (--json lists all)")
    kept = Table("kept as it is", "shape", "why", box=None)
    for key, why in list(plan.kept.items())[:_SHOWN]:
        kept.add_row(key, " x ".join(map(str, source.shapes[key])), why)
    out.print(kept)
    tuned = "none"
    if preparation.job.recovery is not None:
        order = preparation.job.order
        groups = "layers that share an input" if order == "dense" else "attention, up, gate, down"
        tuned = f"{preparation.job.recovery.steps} steps after each group ({groups})"
    lines = {
        "compressed": f"{len(plan.tensors):,} matrices, {plan.parameters:,} weights",
        "kept": f"{len(plan.kept):,} tensors",
        "calibration": _calibration(preparation),
        "fine-tuning": tuned,
        "peak memory": f"{forecast.memory_bytes / 1e9:.2f} GB a worker",
        "disk meanwhile": f"{forecast.disk_bytes / 1e9:.3f} GB",
        "time": f"about {duration(forecast.seconds)} with {options.workers} worker(s)",
    }
    for name, value in lines.items():
        out.print(f"{name:15} {value}", markup=False)


_SHOWN = 40
"""Rows of a table; models with experts have thousands."""


def _group(tensor: PlannedTensor) -> str:
    """What it is done with, as far as names tell; shared inputs show later."""
    if tensor.role:
        return f"all {tensor.role}"
    return "-" if tensor.module is None else tensor.module.rpartition(".")[0] or tensor.module


def _calibration(preparation: Preparation) -> str:
    if preparation.windows is None:
        return "none (data-free)"
    count, context = len(preparation.windows), preparation.window_tokens
    if preparation.windows.dim() == 2:
        return f"{count * context:,} tokens in windows of {context}"
    return f"{count:,} images of {context} patches"
