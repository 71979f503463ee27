"""Draws the rows of `quality.py`: KL divergence against bits, and a Markdown table.

    python benchmarks/plot.py benchmarks/results/quality.jsonl docs/quality.svg

The table goes beside the rows, with the ending .md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

STYLE = {
    "nwc default": ("tab:blue", "o", "nwc, preset default"),
    "nwc paper": ("tab:orange", "s", "nwc, preset paper"),
    "ecsq": ("0.35", "^", "uniform scalar, entropy coded"),
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a model; filled markers are calibrated, hollow ones data-free."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    mpl.rcParams |= {"font.size": 9, "svg.hashsalt": "nwc", "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    figure, axes = plt.subplots(1, len(models), figsize=(4.1 * len(models), 3.4), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for calibrated in (True, False):
            for method, (colour, marker, label) in STYLE.items():
                mine = _select(rows, model, method, calibrated)
                axis.semilogy(
                    [r["bits"] for r in mine],
                    [r["kl_divergence"] for r in mine],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    markerfacecolor=colour if calibrated else "white",
                    linestyle="-" if calibrated else ":",
                    linewidth=1.2,
                    label=label if calibrated else None,
                )
        axis.set_title(model, loc="left", fontsize=9)
        axis.set_xlabel("bits per parameter, every overhead counted")
        axis.grid(alpha=0.25, which="major")
    axes[0][0].set_ylabel("KL divergence to the original (nats per token)")
    axes[0][0].plot(
        [], [], ":", color="0.5", marker="o", markerfacecolor="white", label="data-free"
    )
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def table(rows: list[dict[str, Any]]) -> str:
    """KL divergence and top-1 agreement as Markdown."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    last = rows[-1]
    lines = [
        "| Model | | Bits | " + " | ".join(label for *_, label in STYLE.values()) + " |",
        "|---|---|---|" + "---|" * len(STYLE),
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        for calibrated in (True, False):
            found = {name: _select(rows, model, name, calibrated) for name in STYLE}
            for i, row in enumerate(found["ecsq"]):
                cells = [_cell(found[name][i]) for name in STYLE]
                kind = "calibrated" if calibrated else "data-free"
                lines.append(
                    f"| {model} | {kind} | {row['asked']:g} | " + " | ".join(cells) + " |"
                )
    about = (
        f"KL divergence to the original (nats per token) / top-1 agreement. nwc {last['nwc']}, "
    )
    about += f"commits {commits}, {last['date']}, {last['machine']}."
    return "\n".join([*lines, "", about, ""])


def _cell(row: dict[str, Any]) -> str:
    return f"{row['kl_divergence']:.3g} / {100 * row['top1_agreement']:.1f} %"


def _select(rows: list[dict[str, Any]], model: str, method: str, calibrated: bool) -> list[dict]:
    variant = "feedback" if calibrated else "data-free"
    mine = [r for r in rows if (r["model"], r["method"], r["variant"]) == (model, method, variant)]
    return sorted(mine, key=lambda r: r["asked"])


def main() -> None:
    """Read rows, write picture and table."""
    source, picture = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    plot(rows, picture)
    source.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
