r"""Figure 14: error against rate of key projections, QTIP against ours.

    python experiments/fig14.py --scale small --data FOLDER

QTIP: random Hadamard transform of both sides, then its 1MAD code; ours: all bytes of the stream.
Data-free on both sides. Scale full is Llama 3-8B, blocks 0, 10, 20 and 31: an hour on a processor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import style
import variants
from fig13 import excess_kurtosis
from layers import layers_of
from runner import Experiment, Point, Row, main
from torch import Tensor
from world import World

from nwc.coding.tables import TableBank, to_bytes
from nwc.methods.base import LayerWeight
from nwc.methods.registry import DENSE

SCHEMES = ("nwc", "nwc paper", "ecsq", "qtip")


def points(world: World) -> list[Point]:
    """Key projections of a few blocks."""
    name = world.pick(tiny="llama", small="stories15M-adapted", full="Llama 3-8B")
    blocks = {"tiny": [0], "small": [0, 2, 5], "full": [0, 10, 20, 31]}[world.scale]
    rates = (3,) if world.scale == "tiny" else (2, 3, 4, 5, 6)
    return [
        {"model": name, "block": block, "scheme": scheme, "asked": bits}
        for block in blocks
        for scheme in SCHEMES
        for bits in rates
    ]


def measure(world: World, point: Point) -> list[Row]:
    """One scheme on one matrix."""
    layers = layers_of(world, point["model"])
    name = next(n for n in layers.planned if f".{point['block']}." in n and "k_proj" in n)
    W = layers.weights[name]
    W = W / W.square().mean().sqrt()
    if point["scheme"] == "qtip":
        bits, restored = _qtip(W, point["asked"])
    else:
        bits, restored = _ours(W, point["scheme"], point["asked"])
    return [{
        "matrix": name, "bits": bits, "mse": float((restored - W).square().mean()),
        "kurtosis": excess_kurtosis(W),
    }]  # fmt: skip


def _qtip(W: Tensor, bits: int) -> tuple[float, Tensor]:
    [found] = DENSE["qtip"](bits).quantise([LayerWeight(name="W", W=W)], None)
    return 8 * found.budget.total / W.numel(), found.weight


def _ours(W: Tensor, scheme: str, bits: int) -> tuple[float, Tensor]:
    made = {"nwc": variants.default, "nwc paper": variants.paper}
    gain = bits - 2.1
    for _ in range(3):
        method = variants.ecsq() if scheme == "ecsq" else made[scheme](bits)
        bank = TableBank()
        data = method.compress([LayerWeight(name="W", W=W)], None, gain, bank)[0].data
        found = 8 * (len(data) + len(to_bytes(bank.tables))) / W.numel()
        if abs(found - bits) < 0.01:
            break
        gain += bits - found
    return found, method.restore(data, bank)


def plot(rows: list[Row], path: Path) -> None:
    """A panel a block."""
    blocks = sorted({row["block"] for row in rows})
    figure, axes = style.panels(len(blocks))
    for axis, block in zip(axes, blocks, strict=True):
        mine = [row for row in rows if row["block"] == block]
        for scheme in SCHEMES:
            group = sorted((r for r in mine if r["scheme"] == scheme), key=lambda r: r["bits"])
            style.curve(axis, [r["bits"] for r in group], [r["mse"] for r in group], scheme)
        x = np.linspace(2, 6, 9)
        axis.plot(x, 4.0**-x, color="0.6", linewidth=0.8, label="R(D) of a Gaussian")
        axis.set_yscale("log")
        axis.set_title(f"block {block}, excess kurtosis {mine[0]['kurtosis']:.1f}")
        axis.set_xlabel("bits per weight")
        axis.set_ylabel("squared error (of unit variance)")
    style.legend(figure, axes, columns=5)
    style.save(figure, path)


def table(rows: list[Row]) -> str:
    """Rates and errors."""
    head = ("Block", "Excess kurtosis", "Bits", *(f"{s}: bits, error" for s in SCHEMES))
    body = []
    for block, asked in sorted({(row["block"], row["asked"]) for row in rows}):
        mine = {r["scheme"]: r for r in rows if (r["block"], r["asked"]) == (block, asked)}
        cells = [f"{mine[s]['bits']:.3f}, {mine[s]['mse']:.3g}" for s in SCHEMES if s in mine]
        body.append((block, mine[SCHEMES[0]]["kurtosis"], asked, *cells))
    return style.markdown(head, body)


EXPERIMENT = Experiment(name="fig14", points=points, measure=measure, plot=plot, table=table)

if __name__ == "__main__":
    main("fig14")
