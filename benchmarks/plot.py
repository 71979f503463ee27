"""Draws the rows of `quality.py`: KL divergence against bits, and a Markdown table.

    python benchmarks/plot.py quality.jsonl recovery.jsonl quality.svg

The table goes beside the first file of rows, with the ending .md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt

TUNED = "recovery, compressed features"


class Series(NamedTuple):
    """One way to compress, as it is drawn."""

    method: str
    colour: str
    marker: str
    label: str
    variant: str = "feedback"


SERIES = (
    Series("nwc default", "tab:green", "D", "nwc as it comes: default, fine-tuned", TUNED),
    Series("nwc default", "tab:blue", "o", "default"),
    Series("nwc paper", "tab:orange", "s", "paper"),
    Series("ecsq", "0.35", "^", "uniform scalar, entropy coded"),
)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a model; filled markers are calibrated, hollow ones data-free."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    mpl.rcParams |= {"font.size": 9, "svg.hashsalt": "nwc", "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    figure, axes = plt.subplots(1, len(models), figsize=(4.1 * len(models), 3.9), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for calibrated in (True, False):
            for series in SERIES:
                mine = _select(rows, model, series, calibrated)
                axis.semilogy(
                    [r["bits"] for r in mine],
                    [r["kl_divergence"] for r in mine],
                    color=series.colour,
                    marker=series.marker,
                    markersize=5,
                    markerfacecolor=series.colour if calibrated else "white",
                    linestyle="-" if calibrated else ":",
                    linewidth=1.2,
                    label=series.label if calibrated else None,
                )
        axis.set_title(model, loc="left", fontsize=9)
        axis.set_xlabel("bits per parameter, every overhead counted")
        axis.grid(alpha=0.25, which="major")
    axes[0][0].set_ylabel("KL divergence to the original (nats per token)")
    axes[0][-1].plot(
        [], [], ":", color="0.5", marker="o", markerfacecolor="white", label="data-free"
    )
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def table(rows: list[dict[str, Any]]) -> str:
    """KL divergence and top-1 agreement as Markdown."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    last = rows[-1]
    lines = [
        "| Model | | Bits | " + " | ".join(series.label for series in SERIES) + " |",
        "|---|---|---|" + "---|" * len(SERIES),
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        for calibrated in (True, False):
            found = [_select(rows, model, series, calibrated) for series in SERIES]
            for bits in sorted({row["asked"] for mine in found for row in mine}):
                cells = [_cell([row for row in mine if row["asked"] == bits]) for mine in found]
                kind = "calibrated" if calibrated else "data-free"
                lines.append(f"| {model} | {kind} | {bits:g} | " + " | ".join(cells) + " |")
    about = (
        f"KL divergence to the original (nats per token) / top-1 agreement. nwc {last['nwc']}, "
    )
    about += f"commits {commits}, {last['date']}, {last['machine']}."
    return "\n".join([*lines, "", about, ""])


def _cell(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    return f"{found[0]['kl_divergence']:.3g} / {100 * found[0]['top1_agreement']:.1f} %"


def _select(
    rows: list[dict[str, Any]], model: str, series: Series, calibrated: bool
) -> list[dict[str, Any]]:
    """Rows of a series, one for each rate; data-free ones are the plain method's."""
    if not calibrated and series.variant == TUNED:
        return []
    wanted = (model, series.method, series.variant if calibrated else "data-free", 0)
    mine = [r for r in rows if (r["model"], r["method"], r["variant"], r["seed"]) == wanted]
    return sorted({r["asked"]: r for r in reversed(mine)}.values(), key=lambda r: r["asked"])


def main() -> None:
    """Read rows, write picture and table."""
    *sources, picture = map(Path, sys.argv[1:])
    rows = [json.loads(line) for source in sources for line in source.read_text().splitlines()]
    plot(rows, picture)
    sources[0].with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
