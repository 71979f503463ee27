r"""How close quantisers come to the rate-distortion bound (paper Fig. 6 and App. A.6).

    python experiments/rate_distortion.py --output rows.jsonl [--models FOLDER ...]

Sources are i.i.d. samples of unit variance, and the block matrices of checkpoints, each divided by
its root mean square. One JSON row for each source, scheme and rate; rows that the file already has
are not measured again. `plot_rate_distortion.py` draws them.

What counts as rate:

- `sq`, `vq`, `tcq`, `tcq*`, `rptc`, `1mad`: the fixed rate. Codebooks are free, and so is the
  trellis's first state. Codebooks of `sq` and `vq` are made for other i.i.d. samples than they are
  measured on; for real weights they are made for every other row and measured on all.
- `ecsq`, `ecsq optimal`: the entropy of the integers, of each matrix by itself, free tables.
- `nwc`: every byte of every stream, and the bank of tables. I.i.d. samples form one matrix of 4096
  rows, cut into tiles as a 4096 x 4096 matrix would be, so that the index weighs what it weighs
  there. Head and tables, which a larger matrix pays once as well, are counted whole.

The bound is R(D) of the source as if it were i.i.d.; a scheme that adapts to matrices and columns
may go below that of real weights. Fixed-rate trellis codes are measured on weights drawn at random
(`samples` in a row says how many).
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import math
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

import nwc
from nwc.codec.compressed import CompressedTensor
from nwc.coding.tables import TableBank, to_bytes
from nwc.coding.tiling import PROFILES, Profile
from nwc.compression.plan import make_plan
from nwc.compression.source import SourceCheckpoint
from nwc.evaluation.benchmark import machine
from nwc.formats.shipped import shipped_codec
from nwc.methods.base import LayerWeight
from nwc.methods.neural import Decisions, Neural
from nwc.methods.operating_point import natural_gain
from nwc.numerics.hadamard import mix_both
from nwc.numerics.statistics import RateCurve, histogram, rate_curve
from nwc.quantizers import qtip, scalar, vector

EXAMPLE = Path(__file__).parent.parent / "examples" / "books-llama.tar.xz"

ROWS = 4096

FREEDOM = 5
"""Degrees of freedom of Student's t."""

BOOK_BITS = 10
"""Codebooks of vector quantisation have 2^10 vectors, or those of two dimensions."""


SHAPES = (64, 256, 1024, 16384)
"""Rows of further matrices of Gaussian samples, of as many weights."""

SHAPES_BITS = 4


class Scale(NamedTuple):
    """How much is measured.

    Args:
        columns: of an i.i.d. matrix of 4096 rows.
        trellis: weights for fixed-rate trellis codes.
        rounds: of k-means and Blahut-Arimoto.
    """

    columns: int
    trellis: int
    rounds: int


SCALES = {"tiny": Scale(16, 2**12, 4), "small": Scale(256, 2**16, 400)}


@dataclass(frozen=True, kw_only=True)
class RateDistortion:
    """What to measure."""

    output: Path = Path(__file__).parent.parent / "benchmarks/results/rate_distortion.jsonl"
    """JSONL file to add rows to."""
    models: tuple[Path, ...] = ()
    """Checkpoint folders; the bundled example if there are none."""
    sources: tuple[str, ...] = ("gaussian", "laplace", "student", "models")
    """Which sources."""
    schemes: tuple[str, ...] = (
        "sq", "vq", "tcq", "tcq*", "rptc", "1mad", "ecsq", "ecsq optimal", "nwc",
    )  # fmt: skip
    """Which schemes."""
    bits: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Rates."""
    scale: Literal["tiny", "small"] = "small"
    """`tiny` shows that it runs; its numbers mean nothing."""
    seed: int = 0
    """Of samples and of random transforms."""


class Measurement(NamedTuple):
    """What a scheme does: bits per weight, mean squared error, weights measured, facts."""

    bits: float
    mse: float
    samples: int
    facts: dict[str, Any] = {}  # noqa: RUF012  (never changed)


@dataclass(frozen=True)
class Source:
    """Matrices of unit mean square.

    Args:
        name: of the source.
        matrices: that are measured.
        training: other samples, that codebooks are made for.
        shape: samples that the entries of a table of a trellis code are made for.
        density: grid -> unnormalised density; None counts the matrices.
        reach: where the density ends.
        seed: of random transforms.
        hadamard: whether the matrices have been transformed.
    """

    name: str
    matrices: list[Tensor]
    training: np.ndarray
    shape: np.ndarray
    density: Callable[[np.ndarray], np.ndarray] | None = None
    reach: float = 0.0
    seed: int = 0
    hadamard: bool = False

    @cached_property
    def samples(self) -> np.ndarray:
        """All weights in a row."""
        return np.concatenate([W.numpy().reshape(-1) for W in self.matrices])

    def drawn(self, count: int) -> np.ndarray:
        """So many of them, a multiple of the length of a sequence."""
        count = min(count, len(self.samples)) // qtip.SEQUENCE * qtip.SEQUENCE
        rng = np.random.default_rng(self.seed + 2000)
        return self.samples[rng.permutation(len(self.samples))[:count]]

    def rotated(self) -> Source:
        """After the random Hadamard transform; codebooks are then those of a Gaussian."""
        mixed = [mix_both(W, self.seed + i) for i, W in enumerate(self.matrices)]
        normal = _draw("gaussian", 2**20, self.seed + 1000)
        return Source(self.name, mixed, normal, normal, seed=self.seed, hadamard=True)

    def curve(self, rounds: int) -> RateCurve:
        """R(D) of the weights as if i.i.d."""
        return rate_curve(
            self._probabilities, np.arange(-14.5, -1.4, 1.0), fineness=8, rounds=rounds
        )

    def _probabilities(self, spacing: float) -> np.ndarray:
        if self.density is None:
            return histogram(self.samples.astype(np.float64), spacing)
        half = math.ceil(self.reach / spacing)
        p = self.density(np.arange(-half, half + 1) * spacing)
        return p / p.sum()


def _draw(name: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if name == "laplace":
        x = rng.laplace(scale=0.5**0.5, size=count)
    elif name == "student":
        x = rng.standard_t(FREEDOM, size=count) * ((FREEDOM - 2) / FREEDOM) ** 0.5
    else:
        x = rng.standard_normal(count)
    return x.astype(np.float32)


DENSITIES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "gaussian": (lambda x: np.exp(-0.5 * x * x), 9.0),
    "laplace": (lambda x: np.exp(-(2**0.5) * np.abs(x)), 20.0),
    "student": (lambda x: (1 + x * x / (FREEDOM - 2)) ** (-(FREEDOM + 1) / 2), 150.0),
}


def sources(config: RateDistortion, folder: Path) -> Iterator[Source]:
    """Those asked for."""
    count = ROWS * SCALES[config.scale].columns
    for name, (density, reach) in DENSITIES.items():
        if name in config.sources:
            W = torch.from_numpy(_draw(name, count, config.seed)).view(ROWS, -1)
            other = _draw(name, count, config.seed + 1)
            shape = _draw(name, 2**20, config.seed + 1000)
            yield Source(name, [W], other, shape, density, reach, config.seed)
    if "models" not in config.sources:
        return
    models = config.models
    if not models:
        with tarfile.open(EXAMPLE) as archive:
            archive.extractall(folder, filter="data")
        models = (folder / EXAMPLE.name.partition(".")[0],)
    for model in models:
        checkpoint = SourceCheckpoint(model)
        matrices = []
        for t in make_plan(checkpoint).tensors:
            W = checkpoint.matrix(t.key, t.transposed, t.part).float()
            matrices.append(W / W.square().mean().sqrt())
        if config.scale == "tiny":
            matrices = matrices[:2]
        # Half of what is measured; a codebook made for all of it would look better than it is.
        training = np.concatenate([W[::2].numpy().reshape(-1) for W in matrices])
        # The paper takes a Laplace distribution; these weights are nearer to themselves.
        shape = np.random.default_rng(config.seed).permutation(training)
        yield Source(model.resolve().name, matrices, training, shape, seed=config.seed)


def run(config: RateDistortion) -> None:
    """Measure what the output lacks."""
    torch.set_num_threads(1)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.touch()
    rows = [json.loads(line) for line in config.output.read_text().splitlines()]
    bench = Bench(config, {_identity(row) for row in rows})
    with tempfile.TemporaryDirectory() as folder:
        for source in sources(config, Path(folder)):
            bench.measure(source)


IDENTITY = (
    "source", "scheme", "hadamard", "asked", "states", "rate_weight", "tiles", "steps", "rows",
)  # fmt: skip


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in (*IDENTITY, "scale", "seed"))


@dataclass
class Bench:
    """Measures, writes.

    Args:
        config: what is asked for.
        done: identities of rows that are there.
    """

    config: RateDistortion
    done: set[tuple[Any, ...]]
    _curve: RateCurve | None = field(default=None, init=False)

    @property
    def scale(self) -> Scale:
        """How much is measured."""
        return SCALES[self.config.scale]

    def measure(self, source: Source) -> None:
        """All schemes on one source."""
        self._curve = None
        # A Gaussian stays what it is.
        variants = [False] if source.name == "gaussian" else [False, True]
        turned = functools.cache(source.rotated)
        for hadamard, scheme in itertools.product(variants, self.config.schemes):
            if scheme == "nwc":
                if not hadamard:
                    self._ours(source)
                continue
            for bits in self.config.bits:
                row = {"source": source.name, "scheme": scheme, "hadamard": hadamard}
                self._row(
                    source,
                    {**row, "asked": bits},
                    lambda s=scheme, b=bits, h=hadamard: self._rival(
                        turned() if h else source, s, b
                    ),
                )

    def _rival(self, source: Source, scheme: str, bits: int) -> Measurement:
        x = source.samples
        if scheme == "sq":
            values = scalar.lloyd_max(source.training, 2**bits)
            return Measurement(bits, _mse(x, scalar.nearest(x, values).restored), len(x))
        if scheme == "vq":
            return self._vector(source, bits)
        if scheme == "ecsq":
            return _at_rate(bits, lambda step: _uniform(source.matrices, step))
        if scheme == "ecsq optimal":
            return _at_rate(bits, lambda step: _optimal(source.matrices, step))
        x = source.drawn(self.scale.trellis)
        if scheme == "tcq*":
            table = _pairs(source.shape, max(9, 2 * bits + 1), self.scale.rounds)
            code = qtip.hybrid(table)
            factor = _best_scale(x[: 2 * ROWS], code, bits)
            y = qtip.quantise(x, code * np.float32(factor), bits)
            return Measurement(bits, _mse(x, y), len(x), {"code_scale": round(factor, 4)})
        y = qtip.quantise(x, self._code(scheme), bits)
        return Measurement(bits, _mse(x, y), len(x))

    def _code(self, scheme: str) -> np.ndarray:
        if scheme == "tcq":
            normal = _draw("gaussian", 2**20, self.config.seed + 1000)
            return qtip.hybrid(_pairs(normal, 9, self.scale.rounds))
        return qtip.one_mad() if scheme == "1mad" else qtip.random_code(seed=self.config.seed)

    def _vector(self, source: Source, bits: int) -> Measurement:
        d = max(2, BOOK_BITS // bits)
        points, training = (
            torch.from_numpy(x[: len(x) // d * d]).view(-1, d)
            for x in (source.samples, source.training)
        )
        points = points[:: max(1, len(points) >> 16)]
        count = min(1 << bits * d, len(training))
        training = training[:: max(1, len(training) // (16 * count))].contiguous()
        book = _book(training.numpy().tobytes(), d, bits, count, min(12, self.scale.rounds))
        restored = book[vector.nearest(points, book)]
        return Measurement(bits, _mse(points, restored), points.numel(), {"dimension": d})

    def _ours(self, source: Source) -> None:
        iid = source.density is not None
        options = [(8, weight, "balanced", "columns") for weight in (0.025, 0.05, 0.1)]
        options += [(32, weight, "balanced", "columns") for weight in (0.025, 0.1)]
        options += [(states, 0.1, "balanced", "columns") for states in (0, 4)]
        if iid:
            options += [(states, 0.025, "balanced", "columns") for states in (0, 4)]
            options += [(states, 0.1, "archive", "columns") for states in (8, 32)]
        else:
            # Steps in proportion to a column's spread are not those of least squared error.
            options += [(8, weight, "balanced", "equal") for weight in (0.025, 0.1)]
            options += [(32, 0.1, "balanced", "equal")]
        for each, bits in itertools.product(options, self.config.bits):
            self._our_row(source, bits, *each)
        if source.name == "gaussian" and SHAPES_BITS in self.config.bits:
            # A lane's path starts anew in every column, which short columns pay for.
            for rows, states in itertools.product(SHAPES, (0, 8, 32)):
                self._our_row(source, SHAPES_BITS, states, 0.1, "balanced", "columns", rows)

    def _our_row(
        self,
        source: Source,
        bits: int,
        states: int,
        weight: float,
        tiles: str,
        steps: str,
        rows: int | None = None,
    ) -> None:
        row = {"source": source.name, "scheme": "nwc", "hadamard": False, "asked": bits}
        row |= {"states": states, "rate_weight": weight, "tiles": tiles, "steps": steps}
        matrices, profile = source.matrices, PROFILES[tiles]
        if rows is not None:
            row["rows"] = rows
            matrices = [source.matrices[0].view(rows, -1)]
        if source.density is not None:
            # A matrix of so few weights would be cut less than the large one that it stands for.
            profile = profile._replace(small=0)
        decisions = Decisions(trellis=states, rate_weight=weight)
        equal = steps == "equal"
        self._row(
            source,
            row,
            lambda: _at_rate(
                bits, lambda step: _compressed(matrices, step, profile, decisions, equal=equal)
            ),
        )

    def _row(
        self, source: Source, row: dict[str, Any], measure: Callable[[], Measurement]
    ) -> None:
        row |= {"scale": self.config.scale, "seed": self.config.seed}
        if _identity(row) in self.done:
            return
        start = time.perf_counter()
        found = measure()
        seconds = time.perf_counter() - start
        if self._curve is None:
            self._curve = source.curve(self.scale.rounds)
        bound = self._curve.rate(found.mse)
        if row["scheme"] == "nwc":
            for name, rival in (("ecsq_bits", _uniform), ("ecsq_optimal_bits", _optimal)):
                row[name] = _at_error(found.mse, functools.partial(rival, source.matrices))
        row |= {
            "bits": found.bits,
            "mse": found.mse,
            "bound": bound,
            "gap": found.bits - bound,
            "samples": found.samples,
            **found.facts,
            "seconds": round(seconds, 1),
            "nwc": nwc.__version__,
            "commit": _commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
        }
        with self.config.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        facts = " ".join(f"{row[name]}" for name in IDENTITY if name in row)
        print(f"{facts}: {found.bits:.4f} bits, gap {row['gap']:.4f}, {seconds:.1f} s", flush=True)


def _mse(x: Any, y: Any) -> float:  # noqa: ANN401  (arrays or tensors)
    return float(((x - y) ** 2).mean())


def _at_rate(bits: float, measure: Callable[[float], Measurement]) -> Measurement:
    """What a scheme does near a rate: log2 of the step is the rate with its sign changed."""
    log2_step = 2.05 - bits
    found = measure(2**log2_step)
    for _ in range(3):
        if abs(found.bits - bits) < 0.005:
            break
        log2_step += found.bits - bits
        found = measure(2**log2_step)
    return found


def _at_error(mse: float, measure: Callable[[float], Measurement]) -> float:
    """Bits that a scheme needs for an error; in between, bits fall with log2(error) / 2."""
    log2_step = 0.5 * math.log2(12 * mse)
    found = measure(2**log2_step)
    for _ in range(4):
        away = 0.5 * math.log2(found.mse / mse)
        if abs(away) < 1e-4:
            break
        log2_step -= away
        found = measure(2**log2_step)
    return found.bits + 0.5 * math.log2(found.mse / mse)


def _uniform(matrices: list[Tensor], step: float) -> Measurement:
    return _entropy_coded(matrices, lambda x: scalar.uniform(x, step))


def _optimal(matrices: list[Tensor], step: float) -> Measurement:
    return _entropy_coded(matrices, lambda x: scalar.entropy_constrained(x, step))


def _entropy_coded(
    matrices: list[Tensor], quantise: Callable[[np.ndarray], scalar.Quantised]
) -> Measurement:
    bits = error = 0.0
    for W in matrices:
        x = W.numpy().reshape(-1)
        found = quantise(x)
        bits += len(x) * scalar.entropy(found.indices)
        error += float(np.square(x - found.restored).sum())
    count = sum(W.numel() for W in matrices)
    return Measurement(bits / count, error / count, count)


def _compressed(
    matrices: list[Tensor], step: float, profile: Profile, decisions: Decisions, *, equal: bool
) -> Measurement:
    """Real bytes: compressed without data, or with one step for all weights (H = 1)."""
    log2_gain = -math.log2(step)
    codec, name = shipped_codec("default", 2.05 + log2_gain)
    method = Neural(codec, profile, decisions=decisions)
    bank, streams, error = TableBank(), [], 0.0
    for i, W in enumerate(matrices):
        H, offset = None, 0.0
        if equal:
            H = torch.eye(W.shape[1])
            offset = natural_gain(W, torch.ones(W.shape[1]), torch.ones(len(W))) or 0.0
        layer = LayerWeight(name=f"{i}", W=W, offset=offset)
        streams.append(method.compress([layer], H, log2_gain, bank)[0].data)
    for W, data in zip(matrices, streams, strict=True):
        error += float((CompressedTensor(data, codec, bank).weight() - W).double().square().sum())
    count = sum(W.numel() for W in matrices)
    size = sum(map(len, streams)) + len(to_bytes(bank.tables))
    facts = {"log2_gain": round(log2_gain, 4), "codec": name}
    return Measurement(8 * size / count, error / count, count, facts)


@functools.cache
def _book(data: bytes, d: int, bits: int, count: int, rounds: int) -> Tensor:
    """Codebook of vector quantisation."""
    x = torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy()).view(-1, d)
    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]
    if d <= 3 and count == 1 << bits * d:
        # Many values need a start that is nearly right.
        levels = torch.from_numpy(scalar.lloyd_max(x.numpy().reshape(-1), 2**bits)).float()
        start = torch.cartesian_prod(*[levels] * d)
    return vector.k_means(x, start, rounds=rounds)


@functools.cache
def _table(data: bytes, count: int, rounds: int) -> np.ndarray:
    x = torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy()).view(-1, 2)
    x[:, 0].abs_()
    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]
    return vector.k_means(x, start, rounds=rounds).numpy()


def _pairs(samples: np.ndarray, index_bits: int, rounds: int) -> np.ndarray:
    """Table of a hybrid code: k-means of pairs, one sign of which the state gives."""
    count = max(2**16, 2 ** (index_bits + 4))
    data = samples[:count].tobytes()
    return _table(data, 1 << index_bits, min(30 if index_bits < 11 else 8, rounds))


def _best_scale(x: np.ndarray, code: np.ndarray, bits: int) -> float:
    """Factor of the code at which its error is least, by golden section."""
    ratio = (5**0.5 - 1) / 2
    tried: dict[float, float] = {}

    def error(log2_scale: float) -> float:
        if log2_scale not in tried:
            y = qtip.quantise(x, code * np.float32(2**log2_scale), bits)
            tried[log2_scale] = _mse(x, y)
        return tried[log2_scale]

    low, high = -1.0, 1.0
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    for _ in range(8):
        if error(inner[0]) < error(inner[1]):
            high = inner[1]
            inner = [high - ratio * (high - low), inner[0]]
        else:
            low = inner[0]
            inner = [inner[1], low + ratio * (high - low)]
    return float(2 ** min(tried, key=tried.__getitem__))


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    run(tyro.cli(RateDistortion))
