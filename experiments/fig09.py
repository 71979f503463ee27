r"""Figure 9: what each part gives.

    python experiments/fig09.py --scale small --data FOLDER

(a) scales for columns, matrices, or the whole model; (b) importance, with feedback, in the paper's
codec and in the default; (c) feedback and fine-tuning, from the trials of the rate-accuracy
figures; (d) an entropy code against learned codebooks of a fixed rate. Scale full is Llama 3-8B:
days on a processor for (a), (b) and (d), four nights on a GPU for (c).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fixed_rate
import rate_accuracy as ra
import style
import torch
import variants
from layers import Compressed, Layers, at_bits, layers_of
from runner import ROOT, Experiment, Point, Row, main
from torch import Tensor
from world import World

from nwc.methods.base import LayerMethod
from nwc.numerics.chunking import column_scales, from_chunks, to_chunks

SCHEMES = {
    "a": ("column", "tensor", "global"),
    "b": ("nwc paper", "nwc paper, importance", "nwc", "nwc, importance"),
    "d": ("entropy code", "scalar codebook", "pair codebook"),
}

STEPS = {"tiny": 5, "small": 1500, "full": 60_000}
"""Of training, for (d)."""

SHAPES = {"tiny": (32, 1), "small": (128, 2), "full": (512, 4)}
"""Width and blocks of the networks of (d)."""


def points(world: World) -> list[Point]:
    """All panels."""
    name = world.pick(tiny="llama", small="stories260K", full="Llama 3-8B")
    rates = (3.0,) if world.scale == "tiny" else (3.0, 4.0, 5.0)
    found = [
        {"panel": panel, "model": name, "scheme": scheme, "asked": bits}
        for panel, schemes in SCHEMES.items()
        for scheme, bits in itertools.product(schemes, rates)
    ]
    subject = world.pick(tiny="llama", small="stories15M-adapted", full="Llama 3-8B")
    for variant in ("data-free", "feedback", "recovery", ra.AS_IT_COMES):
        bits = (3.0, 4.0) if world.scale == "small" else rates
        if world.scale == "tiny":
            bits = (3.0,)
        found += ra.points(world, subject, ("nwc",), variant=variant, bits=bits)
    return found


def measure(world: World, point: Point) -> list[Row]:
    """One panel's point."""
    if "panel" not in point:
        return ra.measure(world, point)
    layers = layers_of(world, point["model"])
    bits, scheme = point["asked"], point["scheme"]
    if point["panel"] == "d" and scheme != "entropy code":
        found = fixed(layers, int(bits), 1 if "scalar" in scheme else 2, world)
    else:
        spread = torch.cat([W.reshape(-1) for W in layers.weights.values()]).square().mean()

        def method(name: str) -> LayerMethod:
            if point["panel"] == "a":
                return variants.Normalised(scheme, float(spread) ** 0.5)
            H = layers.hessian(name) if "importance" in scheme else None
            default = scheme.startswith("nwc") and "paper" not in scheme
            return variants.default(bits, H) if default else variants.paper(bits, H)

        feedback = point["panel"] == "b"
        found = at_bits(
            layers, lambda gain: layers.compress(method, gain, feedback=feedback), bits
        )
    return [layers.facts(found)]


def fixed(layers: Layers, bits: int, dimension: int, world: World) -> Compressed:
    """All matrices by a codec of a fixed rate that was trained on them; scales take 16 bits."""
    width, blocks = SHAPES[world.scale]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = fixed_rate.FixedRateCodec(bits, dimension, width, blocks)
    cut = {name: (W, column_scales(W)) for name, W in layers.weights.items()}
    chunks = torch.cat([to_chunks(W, s).reshape(-1, 16) for W, s in cut.values()])
    fixed_rate.train(codec, chunks, steps=STEPS[world.scale])
    restored: dict[str, Tensor] = {}
    for name, (W, scales) in cut.items():
        shape = to_chunks(W, scales)
        mine = codec.restored(shape.reshape(-1, 16)).view_as(shape)
        restored[name] = from_chunks(mine, scales, len(W))
    columns = sum(W.shape[1] for W in layers.weights.values())
    return Compressed(bits + 16 * columns / layers.count, layers.error(restored), restored)


TITLES = {
    "a": "(a) what shares a scale",
    "b": "(b) importance",
    "c": "(c) error compensation",
    "d": "(d) entropy code",
}

NAMES = {
    "data-free": "neither", "feedback": "LDLQ", "recovery": "LDLQ + fine-tuning",
    ra.AS_IT_COMES: "the same, compressed features",
}  # fmt: skip


def plot(rows: list[Row], path: Path) -> None:
    """A panel each."""
    figure, axes = style.panels(4, columns=2, width=4.2)
    for axis, (panel, title) in zip(axes, TITLES.items(), strict=True):
        mine = [row for row in rows if panel_of(row) == panel]
        for i, name in enumerate(dict.fromkeys(map(series_of, mine))):
            group = sorted((r for r in mine if series_of(r) == name), key=lambda r: r["bits"])
            axis.semilogy(
                [r["bits"] for r in group], [r["kl_divergence"] for r in group],
                color=style.COLOURS[i], marker=style.MARKERS[i], label=name,
            )  # fmt: skip
        if not mine:
            axis.axis("off")
            continue
        axis.set_title(f"{title}: {mine[0]['model']}")
        axis.set_xlabel("bits per weight")
        axis.set_ylabel(ra.KL)
        axis.legend()
    style.save(figure, path)


def panel_of(row: Row) -> str:
    """Trials have no panel of their own; they are (c)."""
    return str(row.get("panel", "c"))


def series_of(row: Row) -> str:
    """What a curve is called."""
    return NAMES[row["variant"]] if panel_of(row) == "c" else str(row["scheme"])


def table(rows: list[Row]) -> str:
    """All rows."""
    head = ("Panel", "Model", "Scheme", "Bits", "Squared error", "Perplexity", "KL")
    order: list[Any] = sorted(rows, key=lambda r: (panel_of(r), series_of(r), r["bits"]))
    return style.markdown(
        head,
        [
            (panel_of(r), r["model"], series_of(r), r["bits"], r.get("mse"), r["perplexity"],
             r["kl_divergence"])
            for r in order
        ],
    )  # fmt: skip


EXPERIMENT = Experiment(
    name="fig09", points=points, measure=measure, plot=plot, table=table,
    also=("rate_accuracy",),
    earlier=(ROOT / "benchmarks" / "results" / "recovery.jsonl",),
)  # fmt: skip

if __name__ == "__main__":
    main("fig09")
