r"""What each learned part of a codec saves, on models that it was not made for.

    python experiments/learned_parts.py --train FOLDER ... --held-out FOLDER ... --output FILE

Bits saved at equal error against a uniform scalar quantiser, both sides with tables counted on
what they code:

- `compander`: the default's transform, a correction of every weight by itself.
- `skip`: the same network for the 16 weights of a chunk jointly.
- `linear`: an orthogonal 16 x 16 matrix for every kind of layer (the Karhunen-Loeve transform of
  the training chunks of that kind), a table for each of its 16 outputs.

And bits a weight, in the default's trellis with the integers left as they are:

- `prior`: under the learned density, given the exact ratio of spread and step of every row and
  column: what a prior conditioned on them could do without any table.
- `classes`: under counted tables, one for every half octave of that ratio (the format's), every
  quarter, every eighth, or a single one; the tables themselves are not counted.
"""

from __future__ import annotations

import json
import math
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

import nwc
from nwc.codec.config import DEFAULT, CodecConfig
from nwc.codec.model import WeightCodec
from nwc.compression.plan import make_plan
from nwc.compression.source import SourceCheckpoint
from nwc.evaluation.benchmark import machine
from nwc.formats.shipped import shipped_codec
from nwc.methods.base import LayerWeight
from nwc.methods.neural import Neural
from nwc.methods.operating_point import OperatingPoint, waterfilled
from nwc.numerics.chunking import column_scales
from nwc.training.dataset import ChunkSet, chunks_of
from nwc.training.rate_distortion import GAINS, rate_distortion
from nwc.training.trainer import Trainer, TrainingConfig

EXAMPLE = Path(__file__).parent.parent / "examples" / "books-llama.tar.xz"

Matrices = dict[str, list[Tensor]]
"""By kind of layer."""

CHUNKS = 2**17
"""Chunks that transforms are measured on."""

PRIOR_GAINS = (0.5, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class LearnedParts:
    """What to measure."""

    output: Path = Path(__file__).parent.parent / "benchmarks/results/learned_parts.jsonl"
    """JSONL file to write."""
    train: tuple[Path, ...] = ()
    """Checkpoint folders to train on; the even blocks of the bundled example if there are none."""
    held_out: tuple[Path, ...] = ()
    """Checkpoint folders to measure on; the example's other blocks if there are none."""
    steps: int = 4000
    """Optimiser steps of each network."""
    scale: Literal["tiny", "small"] = "small"
    """`tiny` shows that it runs; its numbers mean nothing."""
    seed: int = 0
    """Of training."""


def run(config: LearnedParts) -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = _data(config, Path(folder))
        if config.scale == "tiny":
            train, held_out = (
                {kind: [W[:, :64] for W in found[:1]] for kind, found in group.items()}
                for group in (train, held_out)
            )
        rows = [*_transforms(config, train, held_out, Path(folder)), *_priors(held_out)]
    facts = {"nwc": nwc.__version__, "machine": machine()}
    lines = [json.dumps({**row, **facts, "seed": config.seed}) + "\n" for row in rows]
    config.output.write_text("".join(lines))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people to read."""
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        for row in (row for row in rows if row["part"] == part):
            what = ("saved", row["saved"]) if "saved" in row else ("bits", row["bits"])
            lines.append(f"{part:<24} gain {row['log2_gain']:5.2f}  {what[0]} {what[1]:8.4f}")
    return "\n".join(lines)


def _data(config: LearnedParts, folder: Path) -> tuple[Matrices, Matrices]:
    if config.train and config.held_out:
        return _matrices(config.train), _matrices(config.held_out)
    with tarfile.open(EXAMPLE) as archive:
        archive.extractall(folder, filter="data")
    example = (folder / EXAMPLE.name.partition(".")[0],)
    return _matrices(example, blocks=0), _matrices(example, blocks=1)


def _matrices(models: tuple[Path, ...], blocks: int | None = None) -> Matrices:
    """Block matrices; of every other block if `blocks` is 0 or 1."""
    found: Matrices = {}
    for model in models:
        checkpoint = SourceCheckpoint(model)
        for t in make_plan(checkpoint).tensors:
            numbers = [int(part) for part in t.key.split(".") if part.isdigit()]
            if blocks is not None and (not numbers or numbers[0] % 2 != blocks):
                continue
            W = checkpoint.matrix(t.key, t.transposed, t.part).float()
            kind = ".".join(part for part in t.key.split(".")[-3:] if not part.isdigit())
            found.setdefault(kind, []).append(W)
    return found


def _transforms(
    config: LearnedParts, train: Matrices, held_out: Matrices, folder: Path
) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(config.seed)
    sample = chunks_of(W for group in held_out.values() for W in group)
    sample = sample[torch.randperm(len(sample), generator=generator)[:CHUNKS]]
    data = ChunkSet(chunks_of(W for group in train.values() for W in group), sample)
    kinds = {
        "compander": CodecConfig(kind="compander", width=16, importance=DEFAULT.importance),
        "skip": CodecConfig(kind="skip", width=64, importance=DEFAULT.importance),
    }
    for name, shape in kinds.items():
        training = TrainingConfig(steps=config.steps, seed=config.seed, checkpoint_every=10**9)
        trainer = Trainer(shape, training, data, folder / f"{name}.safetensors")
        with (folder / "log").open("w") as log:
            codec = trainer.run(log, lambda progress: None)
        for row in rate_distortion(codec.eval().requires_grad_(False), sample):
            saved = row["scalar_bits_at_equal_mse"] - row["bits_per_weight"]
            yield {"part": name, "saved": round(saved, 4), **row}
    yield from _linear(train, held_out)


def _linear(train: Matrices, held_out: Matrices) -> Iterator[dict[str, Any]]:
    """Karhunen-Loeve transforms, one for each kind of layer, at high rate and at real ones."""
    plain, turned = [], []
    for kind in train.keys() & held_out.keys():
        x = chunks_of(train[kind])
        basis = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors
        y = chunks_of(held_out[kind])
        plain.append(y)
        turned.append(y @ basis)
    if not plain:
        return
    for gain in GAINS:
        before = sum(_entropy(y, gain, shared=True) * len(y) for y in plain)
        after = sum(_entropy(z, gain, shared=False) * len(z) for z in turned)
        # Steps and transforms are the same size on both sides: so is the error, to 0.001 bit.
        errors = [sum(_error(y, gain) * len(y) for y in group) for group in (plain, turned)]
        count = sum(map(len, plain))
        saved = (before - after) / count - 0.5 * math.log2(errors[1] / errors[0])
        yield {"part": "linear", "log2_gain": gain, "saved": round(saved, 4)}


def _entropy(chunks: Tensor, gain: float, *, shared: bool) -> float:
    z = (chunks * 2**gain).round().int().numpy()
    lanes = [z.reshape(-1)] if shared else list(z.T)
    return sum(_counted(lane) for lane in lanes) / len(lanes)


def _counted(symbols: np.ndarray) -> float:
    """Entropy in bits a symbol, with Miller's correction: many tables of few symbols look good."""
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / len(symbols)
    correction = (len(counts) - 1) / (2 * math.log(2) * len(symbols))
    return float(-(share * np.log2(share)).sum()) + correction


def _error(chunks: Tensor, gain: float) -> float:
    return float((chunks - (chunks * 2**gain).round() / 2**gain).square().mean())


class _Recorder(Neural):
    """Keeps the integers and the operating point of the matrix that it compresses."""

    integers: np.ndarray
    point: OperatingPoint

    def operating_point(self, layer: LayerWeight, importance: Any, log2_gain: float) -> Any:  # noqa: ANN401
        one = torch.ones(layer.W.shape[1]), torch.ones(len(layer.W))
        self.point = waterfilled(layer.W, *one, log2_gain)
        return self.point

    def measure(self, W: Tensor, log2_gain: float) -> None:
        """Quantise a matrix with one step for all weights, without feedback."""
        self.estimate(LayerWeight(name="", W=W), None, log2_gain)

    def _census(self, integers: np.ndarray, point: OperatingPoint) -> Any:  # noqa: ANN401
        self.integers = integers
        return super()._census(integers, point)


def _priors(held_out: Matrices) -> Iterator[dict[str, Any]]:
    matrices = [W / W.square().mean().sqrt() for group in held_out.values() for W in group]
    codec, _ = shipped_codec("default", 4)
    method = _Recorder(codec)
    schemes: dict[str, Callable[[Tensor], Tensor]] = {
        "classes, a single one": lambda c: torch.zeros_like(c),
        "classes, half octaves": lambda c: (2 * c).round(),
        "classes, quarters": lambda c: (4 * c).round(),
        "classes, eighths": lambda c: (8 * c).round(),
    }
    for gain in PRIOR_GAINS:
        bits = dict.fromkeys(["prior", *schemes], 0.0)
        for W in matrices:
            method.measure(W, gain)
            n = torch.from_numpy(method.integers[:, : len(W)].T.astype(np.int64))
            c = _log2_ratio(W, method.point)
            bits["prior"] += _under_density(codec, n, c)
            for name, classes in schemes.items():
                key = (classes(c).long() * 2 + (n & 1)).numpy().reshape(-1)
                q = (n >> 1).numpy().reshape(-1)
                for value in np.unique(key):
                    part = q[key == value]
                    bits[name] += _counted(part) * len(part)
        count = sum(W.numel() for W in matrices)
        for name, total in bits.items():
            yield {"part": name, "log2_gain": gain, "bits": round(total / count, 4)}


def _log2_ratio(W: Tensor, point: OperatingPoint) -> Tensor:
    """log2(spread / step) of every weight [m, n], from root mean squares of rows and columns."""
    step = point.scales[0] * torch.exp2(-torch.tensor(point.log2_gain))
    step = step * 2 ** (-int(point.classes.columns[0]) / 2)
    columns = column_scales(W)
    rows = column_scales((W / columns.clamp_min(1e-12)).T)
    return (rows[:, None] * columns / step).clamp_min(1e-3).log2()


@torch.no_grad()
def _under_density(codec: WeightCodec, n: Tensor, c: Tensor) -> float:
    assert codec.density is not None
    total = 0.0
    for rows, gains in zip(n.split(256), c.split(256), strict=True):
        # Among integers of one parity a unit of the density is two of them.
        z, gain = rows.reshape(1, -1) / 2, gains.reshape(1, -1).exp2()
        total += float(-codec.density.likelihood(z, gain).log2().sum())
    return total


if __name__ == "__main__":
    run(tyro.cli(LearnedParts))
