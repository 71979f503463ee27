r"""Figure 12: against methods that train the model as they quantise it, and other neural codecs.

    python experiments/fig12.py --scale small --data FOLDER

LLM-QAT and BitDistiller train for hours where `nwc` takes minutes; `nwc` is shown calibrated,
fine-tuned and data-free. Scale full is Llama 2-7B: the paper counts 280 hours of an A100 for
LLM-QAT alone.
"""

from __future__ import annotations

from pathlib import Path

import rate_accuracy as ra
from runner import Point, Row, main
from world import World


def points(world: World) -> list[Point]:
    """Rivals as far as the registry has them."""
    name = world.pick(tiny="llama", small="stories260K", full="Llama 2-7B")
    free = ("nwc", "reallm")
    return [
        *ra.tuned(world, name),
        *ra.points(world, name, ("nwc", *ra.TRAINED, "reallm")),
        *ra.points(world, name, free, variant="data-free"),
    ]


def plot(rows: list[Row], path: Path) -> None:
    """Perplexity, and accuracy or divergence."""
    second = ("accuracy", ra.ACCURACY)
    if not any("accuracy" in row for row in rows):
        second = ("kl_divergence", ra.KL)
    ra.draw(rows, ra.panels_of(rows, ((ra.PERPLEXITY, "perplexity"), second)), path)


EXPERIMENT = ra.experiment("fig12", points, plot)

if __name__ == "__main__":
    main("fig12")
