"""One look for all figures: plain matplotlib, readable in print and by the colour-blind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nwc.reporting.leaderboard import COLOURS, MARKERS

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "nwc",
    # Letters as letters, not as paths: a tenth of the size.
    "svg.fonttype": "none",
    "image.cmap": "cividis",
}


class Look(NamedTuple):
    """How a series is drawn, the same in every figure."""

    colour: str
    marker: str
    label: str


BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BROWN = COLOURS

LOOKS = {
    "nwc": Look(BLACK, "o", "nwc"),
    "nwc tuned": Look(GREEN, "D", "nwc, fine-tuned (as it comes)"),
    "nwc paper": Look(ORANGE, "s", "nwc, the paper's codec"),
    "ecsq": Look(BLUE, "^", "ECSQ"),
    "rtn": Look("0.55", "v", "RTN"),
    "gptq": Look(VERMILION, "P", "GPTQ"),
    "gptq_act_order": Look(PURPLE, "X", "GPTQ, by activation"),
    "awq": Look(SKY, "<", "AWQ"),
    "qtip": Look(BROWN, "*", "QTIP"),
    "qtip_3inst": Look(ORANGE, "*", "QTIP, 3INST"),
    "qtip_hyb": Look(SKY, "*", "QTIP, HYB"),
    "quip_sharp": Look(BLUE, "p", "QuIP#"),
    "seedlm": Look(PURPLE, "h", "SeedLM"),
    "spinquant": Look(VERMILION, "<", "SpinQuant"),
    "watersic": Look(BLUE, "d", "WaterSIC"),
    "entquant": Look(SKY, "s", "EntQuant"),
    "nwc light": Look("0.35", "o", "nwc, light"),
    "svd_llm": Look(GREEN, "1", "SVD-LLM"),
    "svd_llm_v2": Look(GREEN, "2", "SVD-LLM v2"),
    "pocketllm": Look(BROWN, "3", "PocketLLM"),
    "reallm": Look(ORANGE, "4", "ReALLM"),
    "llm_qat": Look(PURPLE, "+", "LLM-QAT"),
    "bitdistiller": Look(VERMILION, "x", "BitDistiller"),
    "gguf_k": Look(PURPLE, ">", "llama.cpp k-quants"),
    "gguf_legacy": Look("0.55", ">", "llama.cpp Q4_0 to Q5_1"),
}


def look(name: str) -> Look:
    """That of a series; the same one for the same name, whoever else is drawn."""
    if name in LOOKS:
        return LOOKS[name]
    number = sum(name.encode())
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number // 8 % len(MARKERS)], name)


def panels(
    count: int, *, width: float = 3.4, height: float = 2.9, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, at most so many to a row."""
    mpl.rcParams.update(STYLE)
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).reshape(-1))
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count]


def curve(axis: Axes, x: Sequence[float], y: Sequence[float], name: str, **changes: Any) -> None:  # noqa: ANN401
    """A series of points joined by a line; of `hollow` only the outlines of markers."""
    one = look(name)
    hollow = changes.pop("hollow", False)
    options: dict[str, Any] = {
        "color": one.colour, "marker": one.marker, "label": one.label,
        "markerfacecolor": "white" if hollow else one.colour,
        "linestyle": ":" if hollow else "-",
    }  # fmt: skip
    axis.plot(x, y, **options | changes)


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """One legend below all panels."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def plain_log(*axes: Axis) -> None:
    """Logarithmic axes of less than two decades: 1, 2, 5, in plain numbers."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same rows give the same bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, dpi=150)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers are given in four digits."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([*lines, ""])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
