r"""Table 3: hyperparameters, the paper's beside those of the codecs that ship with the package.

    python experiments/tab03.py

Nothing is measured: both sides are read from what they come from, at every scale in a second.
"""

from __future__ import annotations

import json

import style
from published import IMPORTANCE, LAMBDAS, printed
from runner import Experiment, Point, Row, main
from world import World

from nwc.formats.shipped import shipped_codecs
from nwc.numerics.chunking import CHUNK


def measure(world: World, point: Point) -> list[Row]:
    """What the card beside each codec says."""
    rows = []
    for name, file in shipped_codecs().items():
        card = json.loads(file.with_suffix(".json").read_text())
        rows.append({"codec": name, **card["codec"], "training": card["training"]})
    return rows


def table(rows: list[Row]) -> str:
    """Theirs and ours, a column a codec of ours."""
    papers = [row for row in rows if row["kind"] == "residual"]
    default = next(row for row in rows if row["codec"] == "default")
    one = papers[0]
    lambdas = ", ".join(f"{value:g}" for value in sorted(row["lam"] for row in papers))

    def training(key: str) -> str:
        return " / ".join(f"{v:g}" for v in dict.fromkeys(row["training"][key] for row in papers))

    body: list[tuple[object, ...]] = [
        ("Chunk size", printed("Table 3", "nwc", "chunk_size"), CHUNK, f"{CHUNK}, each by itself"),
        ("Width of g_a and g_s", printed("Table 3", "nwc", "width"), one["width"],
         default["width"]),
        ("Residual blocks of each", printed("Table 3", "nwc", "blocks"), one["blocks"],
         "one hidden layer"),
        ("Channels of the entropy model", printed("Table 3", "nwc", "channels"), CHUNK, 1),
        ("Learning rate", printed("Table 3", "nwc", "learning_rate"), training("learning_rate"),
         default["training"]["learning_rate"]),
        ("Learning rate, auxiliary loss", printed("Table 3", "nwc", "auxiliary_learning_rate"),
         "none: the support is found by bisection", "none"),
        ("Optimiser", "Adam", "Adam, cosine", "Adam, cosine"),
        ("Steps", "60 epochs of 6.8 M samples of 64 chunks", training("steps"),
         default["training"]["steps"]),
        ("Chunks a step", None, training("batch_chunks"), default["training"]["batch_chunks"]),
        ("lambda", ", ".join(f"{v:g}" for v in LAMBDAS), lambdas, "none: conditioned on its gain"),
        ("lambda_I", ", ".join(f"{v:g}" for v in IMPORTANCE),
         ", ".join(f"{v:g}" for v in one["importance"]), "16 levels half an octave apart"),
    ]  # fmt: skip
    return style.markdown(("", "Paper", "Ours, preset paper", "Ours, default"), body)


def points(world: World) -> list[Point]:
    """One."""
    return [{"table": "hyperparameters"}]


EXPERIMENT = Experiment(name="tab03", points=points, measure=measure, table=table)

if __name__ == "__main__":
    main("tab03")
