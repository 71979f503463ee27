r"""Table 7: no transform at all against learned ones, near 2.1 bits.

    python experiments/tab07.py --scale small --data FOLDER

The identity rounds columns of unit variance to integers, which gives 2.1 bits, whatever the model;
importance and error compensation are off. The codecs are set to its rate. Scale full is Llama
3-8B: some 10 hours on a processor.
"""

from __future__ import annotations

import style
import variants
from layers import at_bits, layers_of
from published import printed
from runner import Experiment, Point, Row, main
from world import World

SCHEMES = ("identity", "learned", "learned, default")


def points(world: World) -> list[Point]:
    """One model."""
    name = world.pick(tiny="llama", small="stories260K", full="Llama 3-8B")
    return [{"model": name, "scheme": scheme} for scheme in SCHEMES]


def measure(world: World, point: Point) -> list[Row]:
    """Compress every matrix, evaluate."""
    layers = layers_of(world, point["model"])
    plain = layers.compress(lambda _: variants.identity(), 0.0)
    found = plain
    if point["scheme"] != "identity":
        made = variants.default if "default" in point["scheme"] else variants.paper
        found = at_bits(
            layers,
            lambda gain: layers.compress(lambda _: made(plain.bits), gain),
            plain.bits,
            near=0.005,
        )
    return [layers.facts(found)]


def table(rows: list[Row]) -> str:
    """Ours; the paper's below."""
    head = ("Model", "Transform", "Bits", "Squared error", "Perplexity", "KL")
    body: list[tuple[object, ...]] = [
        (r["model"], r["scheme"], r["bits"], r["mse"], r["perplexity"], r["kl_divergence"])
        for r in rows
    ]
    for name in ("identity", "learned"):
        bits, perplexity = (printed("Table 7", name, q) for q in ("bits", "perplexity"))
        body.append(("Llama 3-8B (Table 7)", name, bits, None, perplexity, None))
    return style.markdown(head, body)


EXPERIMENT = Experiment(name="tab07", points=points, measure=measure, table=table)

if __name__ == "__main__":
    main("tab07")
