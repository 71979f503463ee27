"""KL divergence by variant, from the rows of `quality.py`, as a Markdown table.

python benchmarks/recovery_table.py benchmarks/results/recovery.jsonl
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

COLUMNS = {
    "neither (data-free)": "data-free",
    "LDLQ": "feedback",
    "LDLQ, compressed features": "feedback, compressed features",
    "LDLQ + recovery": "recovery",
    "LDLQ + recovery, compressed features": "recovery, compressed features",
}


def table(path: Path) -> str:
    """One row for each model, method and rate; mean and range over seeds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = ["| Model | Codec | Bits | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (3 + len(COLUMNS)) + "|")
    points = sorted({(r["model"], r["method"], r["asked"]) for r in rows}, reverse=True)
    for model, method, bits in sorted(points, key=lambda p: (p[0] != points[0][0], p[1], p[2])):
        cells = [model, method.removeprefix("nwc "), f"{bits:g}"]
        for variant in COLUMNS.values():
            found = [
                r["kl_divergence"]
                for r in rows
                if (r["model"], r["method"], r["asked"], r["variant"])
                == (model, method, bits, variant)
            ]
            cells.append(_cell(found))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: list[float]) -> str:
    if not found:
        return ""
    mean = f"{statistics.mean(found):.3g}"
    if len(found) == 1:
        return mean
    return f"{mean} ({min(found):.3g} to {max(found):.3g})"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
