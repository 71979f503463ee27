"""Methods side by side: rows in, a Markdown table and a picture out.

Methods meet at different rates, so a rival's result is set against the bits at which the first
method of the board has the same divergence: a line between its measured points, log KL over bits.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Wong's palette, black first, and markers that differ in print.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def bits_at(rows: list[Row], kl: float, key: str = "file_bits") -> float | None:
    """Bits at which rows of one method reach a divergence; None beyond them.

    Example:
        >>> rows = [{"file_bits": b, "kl_divergence": 4.0**-b} for b in (3, 5)]
        >>> round(bits_at(rows, 4.0**-4), 6)
        4.0
    """
    points = sorted((r[key], math.log(r["kl_divergence"])) for r in rows if r["kl_divergence"] > 0)
    if kl <= 0:
        return None
    wanted = math.log(kl)
    for (low, above), (high, below) in itertools.pairwise(points):
        if below <= wanted <= above:
            share = (above - wanted) / (above - below) if above > below else 0.0
            return low + share * (high - low)
    return None


def series(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by method, in the order of their first appearance, each in the order of bits."""
    names = dict.fromkeys(row["method"] for row in rows)
    return {
        name: sorted((r for r in rows if r["method"] == name), key=lambda r: r["file_bits"])
        for name in names
    }


def table(rows: list[Row], title: str) -> str:
    """Every row, and how many bits the first method needs for the same divergence.

    Args:
        rows: of one model and text.
        title: what was measured.
    """
    found = series(rows)
    first = next(iter(found))
    lines = [
        f"# {title}",
        "",
        f"| Method | Bits, tensors | Bits, file | KL | Top-1 | Perplexity | Seconds | {first} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, mine in found.items():
        for row in mine:
            cells = [
                name,
                f"{row['bits']:.3f}",
                f"{row['file_bits']:.3f}",
                f"{row['kl_divergence']:.3g}",
                f"{100 * row['top1_agreement']:.1f} %",
                f"{row['perplexity']:.4g}",
                f"{row['seconds']:.0f}",
                "" if name == first else _saved(found[first], row),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "KL: divergence from the original on held-out text, nats per token. Top-1: share of "
        "tokens with the same most likely successor. Bits count every overhead, by parameter; "
        "those of methods without a file format are what their codes would take; tokenizer and "
        "config are left out.",
        "",
        f"Last column: bits, file, that {first} takes for the same KL, and the difference; empty "
        "where it was not measured on both sides of it.",
        "",
        f"Perplexity of the original: {rows[0]['reference_perplexity']:.4g}.",
    ]
    return "\n".join([*lines, ""])


def _saved(first: list[Row], row: Row) -> str:
    equal = bits_at(first, row["kl_divergence"])
    return "" if equal is None else f"{equal:.3f} ({equal - row['file_bits']:+.3f})"


def draw(rows: list[Row], title: str, path: Path) -> None:
    """KL divergence against file bits.

    Args:
        rows: of one model and text.
        title: what was measured.
        path: file to write; its ending says the format.
    """
    import matplotlib as mpl  # an extra
    from matplotlib.figure import Figure

    style = {
        "font.size": 9,
        "svg.hashsalt": "nwc",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 4.2))
        axis = figure.subplots()
        for i, (name, mine) in enumerate(series(rows).items()):
            axis.semilogy(
                [row["file_bits"] for row in mine],
                [row["kl_divergence"] for row in mine],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                linestyle="-" if i < len(COLOURS) else "--",
                linewidth=1.8 if i == 0 else 1.1,
                markersize=5,
                label=name,
                zorder=3 if i == 0 else 2,
            )
        axis.set_xlabel("bits per parameter, all weights of the file")
        axis.set_ylabel("KL divergence from the original (nats per token)")
        axis.set_title(title, loc="left", fontsize=9)
        axis.grid(alpha=0.25, which="major")
        axis.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=150)
