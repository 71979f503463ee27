r"""Figure 5: perplexity when nothing is known but the weights.

    python experiments/fig05.py --scale small --data FOLDER

Scale full is Llama 3-8B, 2-7B and 2-13B: minutes to an hour a trial, most of it evaluation.
"""

from __future__ import annotations

from pathlib import Path

import rate_accuracy as ra
from runner import Point, Row, main
from world import World

METHODS = ("nwc", "nwc paper", "ecsq", "rtn", "seedlm", "reallm", "entquant")


def points(world: World) -> list[Point]:
    """No calibration text for anyone."""
    names = {
        "tiny": ["llama"],
        "small": ["stories15M-adapted", "books-llama", "stories260K"],
        "full": ["Llama 3-8B", "Llama 2-7B", "Llama 2-13B"],
    }
    return [
        point
        for name in names[world.scale]
        for point in ra.points(world, name, METHODS, variant="data-free")
    ]


def plot(rows: list[Row], path: Path) -> None:
    """Perplexity, as the paper has it, and divergence, which tells more of small losses."""
    both = ((ra.PERPLEXITY, "perplexity"), ("kl_divergence", ra.KL))
    ra.draw(rows, ra.panels_of(rows, both), path)


EXPERIMENT = ra.experiment("fig05", points, plot)

if __name__ == "__main__":
    main("fig05")
