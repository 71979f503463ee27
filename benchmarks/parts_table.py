"""Tables of what `quality.py` measured beyond the paper: against rivals, and part by part.

    python benchmarks/parts_table.py benchmarks/results/beyond.jsonl

Bits saved are those that a quantiser without the part would need for the same KL divergence, by
KL ~ 2^(-2 bits).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

RIVALS = ("ecsq", "watersic style", "nwc paper")
ALONE = {
    "trellis": "plain and trellis",
    "layers and rows": "plain and rows",
    "price on bits": "plain and a price",
    "sweep": "plain and a sweep",
    "distillation of norms": "plain and distillation",
}
LEFT_OUT = {
    "trellis": "without trellis",
    "layers and rows": "without layers and rows",
    "rows alone": "without rows",
    "price on bits": "without a price on bits",
    "transform (preset light)": "light",
}
ADDED = {"sweep": "a sweep", "distillation of norms": "distillation"}
PARTS = ("trellis", "layers and rows", "rows alone", "price on bits", "transform (preset light)",
         "sweep", "distillation of norms")  # fmt: skip

Rows = dict[tuple[str, str, str, float], dict[str, Any]]


def rivals(rows: Rows) -> str:
    """KL of the default beside its rivals."""
    lines = ["| Model | | Bits | default | " + " | ".join(RIVALS) + " | default / ecsq |"]
    lines.append("|---|---|---|---|" + "---|" * len(RIVALS) + "---|")
    for (model, method, variant, bits), row in rows.items():
        if method != "nwc default":
            continue
        found = [rows.get((model, rival, variant, bits)) for rival in RIVALS]
        shown = ["" if r is None else f"{r['kl_divergence']:.3g}" for r in found]
        ratio = (
            "" if found[0] is None else f"{row['kl_divergence'] / found[0]['kl_divergence']:.2f}"
        )
        cells = [model, variant, f"{bits:g}", f"{row['kl_divergence']:.3g}", *shown, ratio]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parts(rows: Rows, bits: float) -> str:
    """Bits that each part saves: left out of the default, or added to it; and alone."""
    models = [m for m, method, _, b in rows if method == "plain and trellis" and b == bits]
    head = [f"{model}: {where}" for model in models for where in ("in the default", "alone")]
    lines = ["| Part | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for part in PARTS:
        cells = []
        for model in models:

            def kl(method: str | None, model: str = model) -> float | None:
                row = rows.get((model, method or "", "feedback", bits))
                return None if row is None else row["kl_divergence"]

            whole, plain = kl("nwc default"), kl("watersic style")
            cells.append(
                _saved(kl(LEFT_OUT.get(part)), whole) or _saved(whole, kl(ADDED.get(part)))
            )
            cells.append(_saved(plain, kl(ALONE.get(part))))
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _saved(without: float | None, found: float | None) -> str:
    if without is None or found is None:
        return ""
    return f"{0.5 * math.log2(without / found):.3f}"


def main(path: Path) -> None:
    """Print the tables."""
    rows: Rows = {}
    for row in map(json.loads, path.read_text().splitlines()):
        rows[row["model"], row["method"], row["variant"], row["asked"]] = row
    rows = dict(sorted(rows.items()))
    print(rivals(rows))
    print()
    print(parts(rows, 4.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
