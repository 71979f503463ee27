r"""Every method of the registry on the same models, texts, Hessians and seeds: which comes first.

    python experiments/ranking.py --scale small --data FOLDER

The paper has no such table; it is what its comparisons come to here. Methods meet at different
rates, so a rival's divergence is set beside that of `nwc` at the rival's own bits: log KL on a
line between the measured points of `nwc`. Methods that train the whole model, or every block, are
a class of their own, and `nwc` as it comes, fine-tuned, stands among them. Scale full is
Llama 3-8B and Llama 2-7B: some 130 trials, weeks of a GPU, most of it those that train.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import rate_accuracy as ra
import style
from runner import Point, Row, main
from world import World

from nwc.cli.trials import AS_IT_COMES, WAYS

TRAINED = (*ra.TRAINED, f"nwc, {AS_IT_COMES}")
"""Gradient descent on text decides the weights."""


def subjects(world: World) -> tuple[list[str], list[str]]:
    """Models that all methods are run on first, and the larger ones after them."""
    names = {
        "tiny": (["llama"], []),
        "small": (
            ["stories260K", "babygpt-shakespeare-char"],
            ["books-llama", "stories15M-adapted"],
        ),
        "full": (["Llama 2-7B"], ["Llama 3-8B"]),
    }
    return names[world.scale]


def points(world: World) -> list[Point]:
    """All ways to compress, calibrated; `nwc` fine-tuned as well.

    Small models whole, then the others in the order of distance from 4 bits, so that a stopped run
    has something of everything.
    """

    def of(subject: str) -> list[Point]:
        # SpinQuant knows models of Llama's parts alone.
        names = [n for n in WAYS if n != "spinquant" or "gpt" not in subject]
        return [*ra.points(world, subject, names), *ra.tuned(world, subject)]

    first, others = subjects(world)
    rest = [point for subject in others for point in of(subject)]
    whole = [point for subject in first for point in of(subject)]
    return whole + sorted(rest, key=lambda point: abs(point["asked"] - 4))


def kl_at(rows: list[Row], bits: float) -> float | None:
    """Divergence of one method at a rate, from its measured points.

    Up to a third of a bit beyond them its nearest two points are continued; farther, None.

    Example:
        >>> rows = [{"bits": b, "kl_divergence": 4.0**-b} for b in (3, 4, 5)]
        >>> round(4**4.5 * kl_at(rows, 4.5), 6), kl_at(rows, 6)
        (1.0, None)
    """
    known = sorted((row["bits"], math.log(row["kl_divergence"])) for row in rows)
    if len(known) < 2 or not known[0][0] - 0.34 <= bits <= known[-1][0] + 0.34:
        return None
    pairs = list(itertools.pairwise(known))
    (low, above), (high, below) = next((p for p in pairs if bits <= p[1][0]), pairs[-1])
    return math.exp(above + (below - above) * (bits - low) / (high - low))


def series(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one model by name; what is fine-tuned has a name of its own."""
    found: dict[str, list[Row]] = {}
    for (method, variant), group in ra.grouped(rows).items():
        name = method.removesuffix(" default")
        found[f"{name}, {variant}" if variant == AS_IT_COMES else name] = group
    return found


def table(rows: list[Row]) -> str:
    """For each model, method and rate: bits, KL, and how many times the KL of `nwc` that is."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        # A trial has a row for each text; the first is the model's own kind.
        text = next(row["text"] for row in rows if row["model"] == model)
        mine = series([r for r in rows if (r["model"], r["text"]) == (model, text)])
        head = ("Method", *(f"near {bits:g} bits" for bits in ra.BITS))
        parts.append(f"## {model}, {text}\n")
        for title, first, names in (
            ("Calibrated", "nwc", [n for n in mine if n not in TRAINED]),
            ("Trained", TRAINED[-1], [n for n in mine if n in TRAINED]),
        ):
            if first not in mine:
                continue
            order = sorted(names, key=lambda n: (n != first, _behind(mine[n], mine[first])))
            body = [(_label(name), *_cells(mine[name], mine[first])) for name in order]
            parts.append(f"{title}:\n\n{style.markdown(head, body)}")
    parts.append(
        "Cells: KL at true bits per compressed parameter, overheads counted, and how many times "
        "the KL that the first line has at these bits. Bits are the file's for nwc, ecsq, "
        "watersic and entquant, by formula for all others; the networks of nwc paper are not "
        "counted.\n"
    )
    return "\n".join(parts)


def _label(name: str) -> str:
    return "nwc, fine-tuned (as it comes)" if name == TRAINED[-1] else name


def _behind(rows: list[Row], first: list[Row]) -> float:
    """How far a method is behind, in log KL; infinite where the two never meet."""
    pairs = [(row["kl_divergence"], kl_at(first, row["bits"])) for row in rows]
    found = [math.log(kl / ours) for kl, ours in pairs if ours is not None]
    return sum(found) / len(found) if found else math.inf


def _cells(rows: list[Row], first: list[Row]) -> list[str]:
    cells = []
    for asked in ra.BITS:
        near = [r for r in rows if min(ra.BITS, key=lambda b: abs(r["asked"] - b)) == asked]
        if not near:
            cells.append("")
            continue
        row = min(near, key=lambda row: abs(row["asked"] - asked))
        ours = kl_at(first, row["bits"])
        times = "" if ours is None or rows is first else f", {row['kl_divergence'] / ours:.2f} x"
        cells.append(f"{row['kl_divergence']:.3g} at {row['bits']:.2f}{times}")
    return cells


def plot(rows: list[Row], path: Path) -> None:
    """Divergence against bits, a panel a model."""
    own = [row for row in rows if row["text"] == _first_text(rows, row["model"])]
    ra.draw(own, ra.panels_of(own, (("kl_divergence", ra.KL),)), path, height=4.6, columns=5)


def _first_text(rows: list[Row], model: str) -> str:
    text: str = next(row["text"] for row in rows if row["model"] == model)
    return text


EXPERIMENT = ra.experiment("ranking", points, plot, table)

if __name__ == "__main__":
    main("ranking")
