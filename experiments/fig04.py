r"""Figure 4, top: the same codec on other architectures, without training it again.

    python experiments/fig04.py --scale small --data FOLDER

Ours are a GPT-2, a Llama and a mixture of experts. `small` has what lies in the data folder, and a
mixture of experts of 0.1 M parameters that it trains on the spot. Scale full is Mixtral-8x7B,
Qwen3-30B-A3B and GPT-OSS-20B: 12 trials each, hours to a day each on a GPU of 80 GB.
The vision encoders of the figure's bottom row are an experiment of their own.
"""

from __future__ import annotations

from pathlib import Path

import rate_accuracy as ra
from runner import Point, Row, main
from world import World

METHODS = ("nwc", "rtn", "gptq", "qtip")

QUANTITIES = (("accuracy", ra.ACCURACY), ("kl_divergence", ra.KL))


def subjects(world: World) -> list[str]:
    """The models."""
    names = {
        "tiny": ["gpt2", "mixtral"],
        "small": ["books-llama", "babygpt-shakespeare-char", "mixtral-made"],
        "full": ["Mixtral-8x7B", "Qwen3-30B-A3B", "GPT-OSS-20B"],
    }
    return names[world.scale]


def points(world: World) -> list[Point]:
    """Every model, calibrated, without fine-tuning as GPT-OSS is in the paper."""
    bits = (3.0,) if world.scale == "tiny" else ra.BITS
    return [p for s in subjects(world) for p in ra.points(world, s, METHODS, bits=bits)]


def plot(rows: list[Row], path: Path) -> None:
    """A panel a model: accuracy where tasks were put, else divergence."""
    wanted = ra.panels_of(rows, QUANTITIES[:1]) or ra.panels_of(rows, QUANTITIES[1:])
    ra.draw(rows, wanted, path)


EXPERIMENT = ra.experiment("fig04", points, plot)

if __name__ == "__main__":
    main("fig04")
