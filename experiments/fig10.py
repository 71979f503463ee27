r"""Figure 10: as Figure 3, judged on another text (C4) than the models' own.

    python experiments/fig10.py --scale small --data FOLDER

Shares the trials of Figure 3 where it has the same model; judging on both texts is part of one
trial. Scale full adds Llama 2-7B and 2-13B: about 80 trials, a week on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import rate_accuracy as ra
from runner import Point, Row, main
from world import World


def points(world: World) -> list[Point]:
    """The models' second text."""
    methods = (*ra.OURS, *ra.SCALAR, *ra.VECTOR)
    names = {
        "tiny": ["llama"],
        "small": ["stories260K"],
        "full": ["Llama 3-8B", "Llama 2-7B", "Llama 2-13B"],
    }
    return [
        point
        for name in names[world.scale]
        for point in [
            *ra.tuned(world, name, text=1),
            *ra.points(world, name, methods, text=1),
        ]
    ]


def plot(rows: list[Row], path: Path) -> None:
    """Perplexity, as the paper has it, and divergence."""
    both = ((ra.PERPLEXITY, "perplexity"), ("kl_divergence", ra.KL))
    ra.draw(rows, ra.panels_of(rows, both), path)


EXPERIMENT = ra.experiment("fig10", points, plot)

if __name__ == "__main__":
    main("fig10")
