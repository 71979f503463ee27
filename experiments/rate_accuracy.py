"""What all rate-accuracy figures share: trials of methods on models, and how they are drawn.

A point is a model, a method, a variant, a rate and a seed; it has one row for each held-out text.
All figures keep their rows in one file, so that no trial is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import style
from matplotlib.axes import Axes
from runner import ROOT, Experiment, Point, Row
from world import World

from nwc.cli.trials import AS_IT_COMES, WAYS, options_of, rates, trial

EARLIER = tuple(ROOT / "benchmarks" / "results" / f"{n}.jsonl" for n in ("beyond", "quality"))
"""Trials of `benchmarks/quality.py`; the same runs under the same names."""

BITS = (3.0, 4.0, 5.0, 6.0)

OURS = ("nwc", "nwc paper", "ecsq")
SCALAR = ("rtn", "gptq", "gptq_act_order", "awq", "spinquant", "gguf_k", "gguf_legacy")
VECTOR = ("quip_sharp", "qtip", "seedlm", "reallm")
LATER = ("watersic", "entquant")
"""Entropy-coded rivals that the paper does not have."""

TRAINED = ("llm_qat", "bitdistiller")


def there(names: Iterable[str]) -> list[str]:
    """Those that the registry has, and `nwc` in its presets."""
    return [name for name in names if name in WAYS]


def points(
    world: World,
    subject: str,
    methods: Sequence[str],
    *,
    variant: str = "feedback",
    bits: Sequence[float] = BITS,
    seeds: Sequence[int] = (0,),
    text: int = 0,
) -> list[Point]:
    """Trials of some methods on a model. At scale tiny, of few of them at two rates.

    Args:
        world: the scale.
        subject: the model.
        methods: names; those that the registry lacks are left out.
        variant: how they are used.
        bits: rates.
        seeds: of everything random.
        text: on which of the model's texts; a trial has rows of all.
    """
    texts = world.subjects[subject].texts
    if world.scale == "tiny":
        methods, bits = (
            [m for m in methods if m in ("nwc", "rtn", "gptq")],
            (3.0, 5.0)[: len(bits)],
        )
    return [
        {
            "model": subject,
            "method": _named(method, world),
            "variant": variant,
            "asked": asked,
            "seed": seed,
            "text": Path(texts[text]).name,
        }
        for method in there(methods)
        for asked in rates(WAYS[method], tuple(bits), data_free=variant == "data-free")
        for seed in seeds
    ]


def tuned(world: World, subject: str, **options: Any) -> list[Point]:  # noqa: ANN401
    """`nwc` as it comes: fine-tuned."""
    return points(world, subject, ("nwc",), variant=AS_IT_COMES, **options)


def _named(method: str, world: World) -> str:
    # Rows from before there was another preset to tell it from.
    return "nwc default" if method == "nwc" and world.scale == "small" else method


def measure(world: World, point: Point) -> list[Row]:
    """A trial; a row for each text of the model."""
    subject = world.subjects[point["model"]]
    method = point["method"].removesuffix(" default")
    options = options_of(
        WAYS[method], point["variant"], bits=point["asked"], calibration=subject.calibration,
        seed=point["seed"],
    )  # fmt: skip
    options["calibration_tokens"] = subject.calibration_tokens
    if world.scale == "tiny":
        options |= {"recovery_steps": 2, "survey_tokens": 512, "context": subject.context}
    return trial(subject.judge, options)


class Panel(NamedTuple):
    """One quantity of one model and text.

    Args:
        model: its name.
        quantity: field of a row.
        label: of the axis.
        text: file name of the text; None takes any.
    """

    model: str
    quantity: str
    label: str
    text: str | None = None


PERPLEXITY, KL = "perplexity", "KL divergence (nats/token)"
AGREEMENT = "top-1 agreement"
ACCURACY = "accuracy, mean of tasks"


def draw(
    rows: list[Row], wanted: Sequence[Panel], path: Path, *, height: float = 2.9, columns: int = 3
) -> None:
    """Panels of quantity over bits, a curve for each method and variant.

    Args:
        rows: of all panels.
        wanted: the panels.
        path: of the figure.
        height: of a panel, inches.
        columns: of the legend.
    """
    figure, axes = style.panels(len(wanted), height=height)
    for axis, panel in zip(axes, wanted, strict=True):
        _panel(axis, rows, panel)
    style.legend(figure, axes, columns)
    style.save(figure, path)


def _panel(axis: Axes, rows: list[Row], panel: Panel) -> None:
    mine = [
        row
        for row in rows
        if row["model"] == panel.model and panel.text in (None, row["text"])
        and row.get(panel.quantity) is not None
    ]  # fmt: skip
    for (method, variant), group in grouped(mine).items():
        name = method.removesuffix(" default")
        if variant in (AS_IT_COMES, "recovery"):
            name += " tuned"
        style.curve(
            axis, [row["bits"] for row in group], [row[panel.quantity] for row in group], name,
            hollow=variant == "data-free",
        )  # fmt: skip
    if panel.quantity == "perplexity" and mine:
        axis.axhline(mine[0]["reference_perplexity"], color="0.3", linewidth=0.8, linestyle="--")
    if panel.quantity == "kl_divergence":
        axis.set_yscale("log")
    axis.set_title(panel.model + (f"\n{panel.text}" if panel.text else ""))
    axis.set_xlabel("bits per parameter, overheads counted")
    axis.set_ylabel(panel.label)


def grouped(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of one seed by method and variant, in the order of bits."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["bits"]):
        if row["seed"] == 0:
            found.setdefault((row["method"], row["variant"]), []).append(row)
    return found


def panels_of(rows: list[Row], quantities: Sequence[tuple[str, str]]) -> list[Panel]:
    """For each model and text of the rows, those of the quantities that they have.

    Args:
        rows: of one or several models.
        quantities: field of a row and its label.
    """
    found = []
    for model, text in dict.fromkeys((row["model"], row["text"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["text"]) == (model, text)]
        for quantity, label in quantities:
            if any(row.get(quantity) is not None for row in mine):
                found.append(Panel(model, quantity, label, text))
    return found


def table(rows: list[Row]) -> str:
    """All rows."""
    head = (
        "Model", "Text", "Method", "Variant", "Bits", "Perplexity", "(original)", "KL", "Top-1",
        "Accuracy",
    )  # fmt: skip
    order = sorted(
        rows, key=lambda r: (r["model"], r["text"], r["method"], r["variant"], r["bits"])
    )
    return style.markdown(
        head,
        [
            (r["model"], r["text"], r["method"].removesuffix(" default"), r["variant"], r["bits"],
             r["perplexity"], r["reference_perplexity"], r["kl_divergence"], r["top1_agreement"],
             r.get("accuracy"))
            for r in order
        ],
    )  # fmt: skip


def experiment(
    name: str,
    wanted: Callable[[World], Sequence[Point]],
    plot: Callable[[list[Row], Path], None] | None,
    summary: Callable[[list[Row]], str] | None = table,
) -> Experiment:
    """A figure or table drawn from trials."""
    return Experiment(
        name=name, points=wanted, measure=measure, plot=plot, table=summary,
        rows="rate_accuracy", earlier=EARLIER,
    )  # fmt: skip
