r"""Figure 11: perplexity and accuracy of the mixtures of experts.

    python experiments/fig11.py --scale small --data FOLDER

The trials are those of Figure 4; fine-tuned ones are added, group by group as in App. A.5. Scale
full is Mixtral-8x7B and Qwen3-30B-A3B.
"""

from __future__ import annotations

from pathlib import Path

import fig04
import rate_accuracy as ra
from runner import Point, Row, main
from world import World


def points(world: World) -> list[Point]:
    """Mixtures of experts alone."""
    names = {
        "tiny": ["mixtral"],
        "small": ["mixtral-made"],
        "full": ["Mixtral-8x7B", "Qwen3-30B-A3B"],
    }[world.scale]
    bits = (3.0,) if world.scale == "tiny" else ra.BITS
    return [
        *(point for point in fig04.points(world) if point["model"] in names),
        *(point for name in names for point in ra.tuned(world, name, bits=bits)),
    ]


def plot(rows: list[Row], path: Path) -> None:
    """Perplexity; MMLU where it was asked, else agreement with the original."""
    rows = [row | {"mmlu": row.get("tasks", {}).get("mmlu")} for row in rows]
    quantities = [(ra.PERPLEXITY, "perplexity"), ("mmlu", "MMLU accuracy")]
    if not any(row["mmlu"] is not None for row in rows):
        quantities[1] = ("top1_agreement", ra.AGREEMENT)
    ra.draw(rows, ra.panels_of(rows, quantities), path)


EXPERIMENT = ra.experiment("fig11", points, plot)

if __name__ == "__main__":
    main("fig11")
