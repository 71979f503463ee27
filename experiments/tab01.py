r"""Table 1: tails of query projections after each transform.

    python experiments/tab01.py --scale small --data FOLDER

Every row is of unit variance before it is counted. The paper's encoder maps to integers near which
it rounds; its latents, divided by their deviation channel by channel, stand for it, and those of
the default codec are the weights themselves as the trellis sees them. Scale full is Llama 3-8B:
minutes.
"""

from __future__ import annotations

import math

import style
import torch
from fig13 import excess_kurtosis
from layers import layers_of
from published import printed
from runner import Experiment, Point, Row, main
from torch import Tensor
from world import World

from nwc.formats.shipped import shipped_codec
from nwc.numerics.chunking import column_scales, to_chunks
from nwc.numerics.hadamard import mix_both

BITS = 4.0

TRANSFORMS = (
    "original", "columns normalised", "dct", "random rotation", "rht", "neural encoder",
    "neural encoder, default",
)  # fmt: skip


def points(world: World) -> list[Point]:
    """Query projections of models."""
    names = {
        "tiny": ["llama"],
        "small": ["stories15M-adapted", "books-llama"],
        "full": ["Llama 3-8B"],
    }
    return [{"model": m, "transform": t} for m in names[world.scale] for t in TRANSFORMS]


def dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II [n, n].

    Example:
        >>> bool(torch.allclose(dct_matrix(5) @ dct_matrix(5).T, torch.eye(5), atol=1e-6))
        True
    """
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * (i + 0.5) * k) * (2 / n) ** 0.5
    basis[0] *= 0.5**0.5
    return basis.float()


def transformed(W: Tensor, name: str) -> Tensor:
    """A matrix after a transform."""
    m, n = W.shape
    if name == "original":
        return W
    if name == "dct":
        return dct_matrix(m) @ W @ dct_matrix(n).T
    if name == "rht":
        return mix_both(W, 0)
    if name == "random rotation":
        generator = torch.Generator().manual_seed(0)
        left, right = (
            torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for size in (m, n)
        )
        return left @ W @ right
    scales = column_scales(W)
    chunks = to_chunks(W, scales)
    if name == "columns normalised":
        return chunks
    codec, _ = shipped_codec("default" if "default" in name else "paper", BITS)
    codec.eval()
    level = torch.zeros(chunks.shape[:-1], dtype=torch.long)
    gain = codec.config.nominal_log2_gain or BITS - 2.05
    with torch.no_grad():
        z = codec.analysis(chunks, level, torch.full(level.shape, gain))
    return z / z.reshape(-1, z.shape[-1]).std(0)


def measure(world: World, point: Point) -> list[Row]:
    """Statistics over the query projections of all blocks, each of unit variance."""
    layers = layers_of(world, point["model"])
    parts = []
    for name, W in layers.weights.items():
        if "q_proj" in name:
            x = transformed(W, point["transform"]).reshape(-1)
            parts.append((x - x.mean()) / x.std())
    x = torch.cat(parts)
    return [{
        "kurtosis": excess_kurtosis(x), "max": float(x.abs().max()),
        "outliers": 100 * float((x.abs() > 3).float().mean()), "weights": len(x),
    }]  # fmt: skip


def table(rows: list[Row]) -> str:
    """Ours; the paper's in brackets."""
    quantities = ("kurtosis", "max", "outliers")
    head = ("Model", "Transform", "Excess kurtosis", "Largest, deviations", "Outliers, %")
    body = []
    for row in rows:
        theirs = [printed("Table 1", row["transform"], quantity) for quantity in quantities]
        cells = [
            f"{row[quantity]:.2f}" + ("" if value is None else f" ({value:.2f})")
            for quantity, value in zip(quantities, theirs, strict=True)
        ]
        body.append((row["model"], row["transform"], *cells))
    note = "\nIn brackets: Table 1 of the paper, Llama 3-8B. A Gaussian has 0 and 0.27 %.\n"
    return style.markdown(head, body) + note


EXPERIMENT = Experiment(name="tab01", points=points, measure=measure, table=table)

if __name__ == "__main__":
    main("tab01")
