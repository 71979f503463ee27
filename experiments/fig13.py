r"""Figure 13: excess kurtosis and spread of every matrix, by depth and kind.

    python experiments/fig13.py --scale small --data FOLDER

Scale full is Llama 3-8B: ten minutes of reading and 16 GB of download.
"""

from __future__ import annotations

from pathlib import Path

import style
from layers import layers_of
from runner import Experiment, Point, Row, main
from torch import Tensor
from world import World


def points(world: World) -> list[Point]:
    """Models."""
    names = {
        "tiny": ["llama"],
        "small": ["stories15M-adapted", "books-llama", "stories260K"],
        "full": ["Llama 3-8B"],
    }
    return [{"model": name} for name in names[world.scale]]


def excess_kurtosis(x: Tensor) -> float:
    """Fourth standardised moment minus 3: 0 for a Gaussian.

    Example:
        >>> excess_kurtosis(torch.tensor([-1.0, 1.0]))
        -2.0
    """
    centred = x.double() - x.double().mean()
    return float(centred.pow(4).mean() / centred.square().mean().square() - 3)


def measure(world: World, point: Point) -> list[Row]:
    """A row for each matrix."""
    layers = layers_of(world, point["model"])
    return [
        {
            "matrix": name,
            "block": layers.planned[name].block,
            "kind": layers.planned[name].label,
            "kurtosis": excess_kurtosis(W),
            "deviation": float(W.std()),
        }
        for name, W in layers.weights.items()
    ]


def plot(rows: list[Row], path: Path) -> None:
    """A column of panels for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, _ = style.panels(1, width=3.4 * len(models), height=4.8)
    figure.clear()
    axes = figure.subplots(2, len(models), squeeze=False)
    labels = {"kurtosis": "excess kurtosis", "deviation": "standard deviation"}
    for i, model in enumerate(models):
        mine = [row for row in rows if row["model"] == model]
        for axis, (quantity, label) in zip(axes[:, i], labels.items(), strict=True):
            for j, kind in enumerate(dict.fromkeys(row["kind"] for row in mine)):
                of_kind = [row for row in mine if row["kind"] == kind]
                axis.plot(
                    [row["block"] for row in of_kind], [row[quantity] for row in of_kind],
                    color=style.COLOURS[j % 8], marker=style.MARKERS[j % 10],
                    label=kind.rpartition(".")[2],
                )  # fmt: skip
            axis.set_ylabel(label)
            axis.set_xlabel("block")
        axes[0][i].set_yscale("symlog", linthresh=1)
        axes[0][i].axhline(0, color="0.3", linewidth=0.8)
        axes[0][i].set_title(model)
    style.legend(figure, list(axes.reshape(-1)), columns=7)
    style.save(figure, path)


def table(rows: list[Row]) -> str:
    """How many matrices have heavier tails than a Gaussian, and which have the heaviest."""
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        most = max(mine, key=lambda row: row["kurtosis"])
        heavy = sum(row["kurtosis"] > 0 for row in mine)
        body.append((model, f"{heavy} of {len(mine)}", most["matrix"], most["kurtosis"]))
    return style.markdown(("Model", "Kurtosis above 0", "Heaviest", "Its kurtosis"), body)


EXPERIMENT = Experiment(name="fig13", points=points, measure=measure, plot=plot, table=table)

if __name__ == "__main__":
    main("fig13")
