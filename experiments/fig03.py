r"""Figure 3: perplexity, divergence and accuracy against bits, on the main model.

    python experiments/fig03.py --scale small --data FOLDER

Scale full is Llama 3-8B on WikiText-2, six common-sense tasks and MMLU: about 40 trials, each a
night on one GPU with fine-tuning, an hour or two without.
"""

from __future__ import annotations

from pathlib import Path

import rate_accuracy as ra
from runner import Point, Row, main
from world import World

QUANTITIES = (
    (ra.PERPLEXITY, "perplexity"),
    ("kl_divergence", ra.KL),
    ("top1_agreement", ra.AGREEMENT),
    ("accuracy", ra.ACCURACY),
)


def points(world: World) -> list[Point]:
    """The main model, calibrated."""
    subject = world.pick(tiny="llama", small="stories15M-adapted", full="Llama 3-8B")
    rivals = (*ra.SCALAR, *ra.VECTOR, *ra.LATER)
    return [
        *ra.tuned(world, subject),
        *ra.points(world, subject, (*ra.OURS, *rivals)),
    ]


def plot(rows: list[Row], path: Path) -> None:
    """A panel a quantity."""
    ra.draw(rows, ra.panels_of(rows, QUANTITIES), path)


EXPERIMENT = ra.experiment("fig03", points, plot)

if __name__ == "__main__":
    main("fig03")
