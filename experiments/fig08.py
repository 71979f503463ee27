r"""Figure 8: where the error goes: columns that matter more are restored more closely.

    python experiments/fig08.py --scale small --data FOLDER

A query projection in the middle of the model, compressed by the paper's codec with its levels and
by the default with its steps, without feedback. Scale full is the tenth layer of Llama 3-8B:
minutes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import style
import torch
import variants
from layers import layers_of
from runner import Experiment, Point, Row, main
from world import World

from nwc.coding.tables import TableBank
from nwc.methods.base import LayerWeight
from nwc.numerics.chunking import column_scales

BITS = 4.0
COLUMNS, ROWS = 96, 48
"""Resolution of the map: means over blocks of the matrix."""

SCHEMES = ("nwc paper", "nwc")


def points(world: World) -> list[Point]:
    """One matrix, two codecs."""
    name = world.pick(tiny="llama", small="stories15M-adapted", full="Llama 3-8B")
    return [{"model": name, "scheme": scheme} for scheme in SCHEMES]


def measure(world: World, point: Point) -> list[Row]:
    """Error of every column beside diag H, and a map of errors."""
    layers = layers_of(world, point["model"])
    queries = [name for name in layers.planned if "q_proj" in name]
    name = queries[min(10, len(queries) // 2)]
    W, H = layers.weights[name], layers.hessian(name)
    made = variants.paper if point["scheme"] == "nwc paper" else variants.default
    method, bank = made(BITS, H), TableBank()
    data = method.compress([LayerWeight(name=name, W=W)], None, BITS - 2.3, bank)[0].data
    scales = column_scales(W)
    E = (method.restore(data, bank) - W) / torch.where(scales > 0, scales, 1)
    order = H.diagonal().argsort(stable=True)
    grid = E.abs()[:, order]
    blocks = [
        [round(float(cell.mean()), 3) for cell in row.tensor_split(min(COLUMNS, W.shape[1]), 1)]
        for row in grid.tensor_split(min(ROWS, len(W)), 0)
    ]
    diagonal, mse = H.diagonal()[order], E.square().mean(0)[order]
    both = torch.stack([diagonal, mse]).clamp_min(1e-30).log()
    return [{
        "matrix": name, "bits": 8 * len(data) / W.numel(),
        "diagonal": [float(f"{v:.4g}") for v in diagonal.tolist()],
        "mse": [float(f"{v:.4g}") for v in mse.tolist()],
        "correlation": float(torch.corrcoef(both)[0, 1]), "map": blocks,
    }]  # fmt: skip


def plot(rows: list[Row], path: Path) -> None:
    """Above: diag H and inverse error; below: the map. Columns in the order of diag H."""
    figure, grid = figure_of(len(rows))
    for i, row in enumerate(rows):
        above, below = grid[0][i], grid[1][i]
        x = np.arange(len(row["diagonal"]))
        H, inverse = np.array(row["diagonal"]), 1 / np.maximum(row["mse"], 1e-12)
        above.semilogy(x, H / np.median(H), color=style.BLACK, label="diag H")
        above.semilogy(
            x, inverse / np.median(inverse), ".", color=style.VERMILION, markersize=3,
            label="1 / squared error", rasterized=True,
        )  # fmt: skip
        above.set_title(f"{style.look(row['scheme']).label}, {row['bits']:.2f} bits")
        above.set_ylabel("in units of the median")
        image = below.imshow(
            row["map"],
            aspect="auto",
            interpolation="none",
            extent=(0, len(x), 0, len(row["map"])),
            vmin=0,
        )
        below.set_xlabel("columns, least important first")
        below.set_yticks([])
        below.grid(visible=False)
        figure.colorbar(image, ax=below, label="mean |error|, unit columns")
    style.legend(figure, [grid[0][0]], columns=2)
    style.save(figure, path)


def figure_of(columns: int) -> tuple[style.Figure, np.ndarray]:
    """Two rows of panels."""
    figure, _ = style.panels(1, width=4.2 * columns, height=4.6)
    figure.clear()
    return figure, figure.subplots(2, columns, squeeze=False)


def table(rows: list[Row]) -> str:
    """How closely error follows importance."""
    head = ("Codec", "Matrix", "Bits", "Correlation of log error with log diag H")
    body = [(row["scheme"], row["matrix"], row["bits"], row["correlation"]) for row in rows]
    return style.markdown(head, body)


EXPERIMENT = Experiment(name="fig08", points=points, measure=measure, plot=plot, table=table)

if __name__ == "__main__":
    main("fig08")
