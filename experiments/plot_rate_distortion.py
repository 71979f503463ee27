"""Draws the rows of `rate_distortion.py`: gap to the bound against rate, and a Markdown table.

    python experiments/plot_rate_distortion.py benchmarks/results/rate_distortion.jsonl \
      docs/rate_distortion.svg

The table goes beside the rows, with the ending .md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]

CEILING = 0.85
"""Bits; what lies above is drawn as leaving the panel."""


class Series(NamedTuple):
    """One way to quantise, as it is drawn."""

    scheme: str
    colour: str
    marker: str
    label: str
    states: int | None = None


SERIES = (
    Series("sq", "0.62", "v", "SQ (Lloyd-Max)"),
    Series("vq", "0.35", "^", "VQ (k-means)"),
    Series("tcq", "tab:red", "s", "TCQ (QTIP HYB)"),
    Series("tcq*", "tab:orange", "D", "TCQ* (larger, scaled codebook)"),
    Series("1mad", "tab:pink", "P", "TCQ (1MAD)"),
    Series("rptc", "tab:purple", "X", "TCQ (RPTC)"),
    Series("ecsq", "tab:blue", "o", "ECSQ (ideal entropy code)"),
    Series("nwc", "tab:green", "o", "nwc as it comes: 8 states, λ = 0.025; file bytes", 8),
    Series("nwc", "black", "*", "nwc, 32 states, λ = 0.1; file bytes", 32),
)

WEIGHTS = {8: 0.025, 32: 0.1}
"""Price of a bit of the `nwc` rows that are drawn: as it comes, and at its best."""

NAMES = {"gaussian": "Gaussian", "laplace": "Laplace", "student": "Student t, 5 d.o.f."}


def plot(rows: list[Row], path: Path) -> None:
    """A panel a source; dotted with hollow markers after the random Hadamard transform."""
    found = list(dict.fromkeys(row["source"] for row in rows))
    wide = min(3, len(found) + 1)
    high = -(-(len(found) + 1) // wide)
    mpl.rcParams |= {"font.size": 9, "svg.hashsalt": "nwc", "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    figure, axes = plt.subplots(high, wide, figsize=(4.1 * wide, 3.3 * high), squeeze=False)
    panels = list(axes.reshape(-1))
    for axis, source in zip(panels, found, strict=False):
        _panel(axis, [row for row in rows if row["source"] == source])
        axis.set_title(NAMES.get(source, f"weights: {source}"), loc="left", fontsize=9)
    for axis in panels[len(found) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("bits above R(D) at equal error")
    handles = [
        mpl.lines.Line2D([], [], color=s.colour, marker=s.marker, markersize=5, label=s.label)
        for s in SERIES
    ]
    hollow = {"color": "0.5", "linestyle": ":", "marker": "o", "markerfacecolor": "white"}
    handles.append(
        mpl.lines.Line2D([], [], **hollow, markersize=5, label="after random Hadamard transform")
    )
    # The panel after the last source holds the legend, so that it covers no curve.
    panels[len(found)].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)


def _panel(axis: Axes, rows: list[Row]) -> None:
    for series in SERIES:
        for hadamard in (False, True):
            mine = select(rows, series, hadamard=hadamard)
            axis.plot(
                [row["bits"] for row in mine],
                [row["gap"] for row in mine],
                color=series.colour,
                marker=series.marker,
                markersize=5,
                markerfacecolor="white" if hadamard else series.colour,
                linestyle=":" if hadamard else "-",
                linewidth=1.2,
            )
    lowest = min((row["gap"] for row in rows), default=0.0)
    axis.set_ylim(min(0.0, 1.1 * lowest), CEILING)
    axis.axhline(0, color="0.2", linewidth=0.8)
    axis.set_xticks(range(2, 7))
    axis.set_xlabel("bits per weight")
    axis.grid(alpha=0.25)


def select(rows: list[Row], series: Series, *, hadamard: bool) -> list[Row]:
    """Rows of a series, one for each rate."""
    mine = [r for r in rows if r["scheme"] == series.scheme and r["hadamard"] == hadamard]
    if series.states is not None:
        wanted = (series.states, WEIGHTS[series.states], "balanced", "columns")
        names = ("states", "rate_weight", "tiles", "steps")
        mine = [row for row in mine if tuple(row[name] for name in names) == wanted]
        mine = [row for row in mine if "rows" not in row]
    return sorted(mine, key=lambda row: row["asked"])


def table(rows: list[Row]) -> str:
    """Gaps of every scheme, and what `nwc` saves against entropy-coded scalar quantisation."""
    rates = sorted({row["asked"] for row in rows})
    head = "| " + " | ".join(f"{rate} bits" for rate in rates) + " |"
    lines = ["Bits above R(D) at equal error.", "", "| Source | Scheme " + head]
    lines.append("|---|---|" + "---|" * len(rates))
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row["source"], _describe(row)), {})[row["asked"]] = row
    for (source, scheme), mine in groups.items():
        cells = [f"{mine[rate]['gap']:.3f}" if rate in mine else "" for rate in rates]
        lines.append(f"| {source} | {scheme} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Bits that `nwc` saves at equal error against ECSQ with an ideal entropy code, uniform",
    ]
    lines += ["with mid-points / optimised (Chou, Lookabaugh and Gray 1989).", ""]
    lines += ["| Source | Scheme " + head, "|---|---|" + "---|" * len(rates)]
    for (source, scheme), mine in groups.items():
        if not scheme.startswith("nwc"):
            continue
        cells = [_saved(mine[rate]) if rate in mine else "" for rate in rates]
        lines.append(f"| {source} | {scheme} | " + " | ".join(cells) + " |")
    last = rows[-1]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    about = f"nwc {last['nwc']}, commits {commits}, {last['date']}, {last['machine']}."
    return "\n".join([*lines, "", about, ""])


def _describe(row: Row) -> str:
    if row["scheme"] != "nwc":
        return row["scheme"].replace("*", r"\*") + (", RHT" if row["hadamard"] else "")
    name = f"nwc, {row['states']} states, λ {row['rate_weight']:g}, tiles {row['tiles']}"
    name += f", {row['rows']} rows" if "rows" in row else ""
    return name + (", equal steps" if row["steps"] == "equal" else "")


def _saved(row: Row) -> str:
    uniform, best = row["ecsq_bits"] - row["bits"], row["ecsq_optimal_bits"] - row["bits"]
    return f"{uniform:.3f} / {best:.3f}"


def main() -> None:
    """Read rows, write picture and table."""
    source, picture = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    plot(rows, picture)
    source.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
