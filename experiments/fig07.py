r"""Figure 7: perplexity against squared error, scalar steps against learned transforms.

    python experiments/fig07.py --scale small --data FOLDER

Without feedback and fine-tuning, so that the error is that of the codec. `importance` gives the
codecs diag H, as the paper's levels or as steps. Scale full is Llama 3-8B: the matrices take
some 20 hours on a processor; a GPU is used for the evaluation alone.
"""

from __future__ import annotations

from pathlib import Path

import style
import variants
from layers import at_bits, layers_of
from runner import Experiment, Point, Row, main
from world import World

from nwc.methods.base import LayerMethod

SCHEMES = ("ecsq", "nwc paper", "nwc paper, importance", "nwc", "nwc, importance")


def points(world: World) -> list[Point]:
    """Schemes at rates."""
    name = world.pick(tiny="llama", small="stories260K", full="Llama 3-8B")
    rates = (3.0,) if world.scale == "tiny" else (3.0, 4.0, 5.0)
    return [{"model": name, "scheme": s, "asked": bits} for s in SCHEMES for bits in rates]


def measure(world: World, point: Point) -> list[Row]:
    """Compress every matrix near a rate, evaluate."""
    layers = layers_of(world, point["model"])
    scheme, bits = point["scheme"], point["asked"]

    def method(name: str) -> LayerMethod:
        H = layers.hessian(name) if "importance" in scheme else None
        if scheme == "ecsq":
            return variants.ecsq()
        return variants.paper(bits, H) if "paper" in scheme else variants.default(bits, H)

    found = at_bits(layers, lambda gain: layers.compress(method, gain), bits)
    return [layers.facts(found)]


def plot(rows: list[Row], path: Path) -> None:
    """Perplexity and divergence over error: below is better at the same error."""
    figure, axes = style.panels(2, width=3.8)
    labels = {"perplexity": "perplexity", "kl_divergence": "KL divergence (nats per token)"}
    for axis, (quantity, label) in zip(axes, labels.items(), strict=True):
        for scheme in SCHEMES:
            mine = sorted((r for r in rows if r["scheme"] == scheme), key=lambda r: r["mse"])
            style.curve(
                axis, [r["mse"] for r in mine], [r[quantity] for r in mine],
                scheme.partition(",")[0], hollow="importance" in scheme,
                label=style.look(scheme.partition(",")[0]).label
                + (", importance" if "importance" in scheme else ""),
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        style.plain_log(axis.xaxis, *([axis.yaxis] if quantity == "perplexity" else []))
        axis.set_xlabel("squared error (of unit variance)")
        axis.set_ylabel(label)
        axis.set_title(rows[0]["model"])
    style.legend(figure, axes)
    style.save(figure, path)


def table(rows: list[Row]) -> str:
    """All rows."""
    names = ("scheme", "asked", "bits", "mse", "perplexity", "kl_divergence")
    return style.markdown(names, [[row[name] for name in names] for row in rows])


EXPERIMENT = Experiment(name="fig07", points=points, measure=measure, plot=plot, table=table)

if __name__ == "__main__":
    main("fig07")
