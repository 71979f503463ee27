r"""Draws the rows of `fig04_vision.py`: accuracy and divergence against bits per weight.

    python experiments/plot_fig04_vision.py benchmarks/results/fig04_vision.jsonl \
      docs/figures/fig04_vision.svg

The thin line is the original's accuracy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

Row = dict[str, Any]

STYLES = {"nwc": ("tab:green", "o"), "ecsq": ("tab:blue", "s"), "gptq": ("tab:red", "^"),
          "rtn": ("0.5", "v")}  # fmt: skip
LINES = {"data-free": ":", "calibrated": "--", "recovery": "-"}


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy and divergence against bits per weight, a row of panels for each model."""
    mpl.rcParams |= {"font.size": 9, "svg.hashsalt": "nwc", "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(len(models), 2, figsize=(9.6, 3.4 * len(models)), squeeze=False)
    for (left, right), model in zip(axes, models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        for key in dict.fromkeys((row["method"], row["variant"]) for row in mine):
            part = sorted(
                (row for row in mine if (row["method"], row["variant"]) == key),
                key=lambda row: row["bits"],
            )
            colour, marker = STYLES[key[0]]
            look = {"color": colour, "marker": marker, "linestyle": LINES[key[1]]}
            x = [row["bits"] for row in part]
            left.plot(x, [100 * r["accuracy"] for r in part], **look, markersize=4, linewidth=1.2)
            right.plot(
                x, [r["kl_divergence"] for r in part], **look, markersize=4, linewidth=1.2,
                label=", ".join(key),
            )  # fmt: skip
        left.axhline(100 * mine[0]["reference_accuracy"], color="0.2", linewidth=0.8)
        left.set_title(f"{model}, {mine[0]['images']:,} images", loc="left", fontsize=9)
        left.set_ylabel("top-1 accuracy, %")
        right.set_ylabel("KL(original || compressed), nats")
        right.set_yscale("log")
        right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for axis in (left, right):
            axis.set_xlabel("bits per compressed weight")
            axis.grid(alpha=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)


def main() -> None:
    """Read rows, draw."""
    source, picture = map(Path, sys.argv[1:])
    plot([json.loads(line) for line in source.read_text().splitlines()], picture)


if __name__ == "__main__":
    main()
