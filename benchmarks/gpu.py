"""Decoding on a GPU: entropy decoding alone, whole matrices, a model, and products.

    python benchmarks/gpu.py --output benchmarks/results
    python benchmarks/gpu.py --dry-run --output runs/gpu

Writes `<gpu>_<date>.md` and `.jsonl`. Weights are synthetic and Gaussian, compressed data-free;
preset `calibrated` is `default` with importances of columns and rows drawn at random, which gives
the tables, classes and scales of rows of a real checkpoint. Of a model one matrix of each shape is
compressed and stands for those of all layers, each layer with its own copy of the words.

Every kernel is compared with its oracle on the CPU first; if one differs, nothing is timed. Times
are medians of CUDA events around the replay of a CUDA graph, so that no launch from Python is part
of them; before every run of a single matrix a buffer larger than the L2 cache is written.

`--dry-run` goes the same way with tiny matrices in Triton's interpreter on the CPU, to see that
the script works; its times mean nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch.nn.functional import linear

import nwc
from nwc.codec.compressed import CompressedTensor
from nwc.codec.gpu import DeviceMatrices
from nwc.codec.gpu_product import DeviceProduct
from nwc.coding.tables import TableBank
from nwc.coding.tiling import PROFILES, Profile
from nwc.formats.shipped import shipped_codec
from nwc.kernels.gpu import DeviceBatch, Plan
from nwc.kernels.tile_batch import Coded, Place, batch
from nwc.methods.base import LayerWeight
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What to measure."""

    output: Path
    """Folder for the two files."""
    bits: float = 4.0
    """Bits per weight."""
    size: int = 4096
    """Rows and columns of the single matrix."""
    layers: int = 32
    """Decoder blocks of the model."""
    repeats: int = 50
    """Timed runs of a single matrix; a fifth of it for the model."""
    dry_run: bool = False
    """Tiny matrices in the interpreter on the CPU."""


class Shapes(NamedTuple):
    """The linear layers of a decoder block, rows and columns."""

    matrices: dict[str, tuple[int, int]]

    @property
    def weights(self) -> int:
        """Weights of a block."""
        return sum(m * n for m, n in self.matrices.values())


LLAMA_8B = Shapes(
    {
        "q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096),
        "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336),
    }
)  # fmt: skip
TINY = Shapes({"q": (32, 16), "k": (16, 16), "down": (16, 32)})


class Bench:
    """Times functions on a device and keeps the rows.

    Args:
        config: what to measure.
    """

    def __init__(self, config: Gpu) -> None:
        self.config = config
        self.device = torch.device("cpu" if config.dry_run else "cuda")
        self.rows: list[Row] = []
        self._flush = torch.empty(
            1 if config.dry_run else 2**28, dtype=torch.int8, device=self.device
        )

    def seconds(
        self, run: Callable[[], object], *, long: bool = False, graph: bool = True
    ) -> float:
        """Median time of a function; `long` ones run less often and do not mind the cache."""
        if self.config.dry_run:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        replay = run
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                run()
            replay = recorded.replay
            replay()
        found = []
        for _ in range(max(3, self.config.repeats // (5 if long else 1))):
            if not long:
                self._flush.zero_()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            replay()
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last) / 1e3)
        return statistics.median(found)

    def note(self, table: str, what: str, seconds: float | None, **facts: float | str) -> None:
        """Keep a row."""
        row = {"table": table, "what": what, "seconds": seconds, **facts}
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)


class DiffersError(Exception):
    """A kernel does not give what its oracle gives."""


def compressed(shape: tuple[int, int], preset: str, config: Gpu, profile: str) -> CompressedTensor:
    """One Gaussian matrix as a `CompressedTensor`."""
    tiles = Profile(32, 128) if config.dry_run else PROFILES[profile]
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=generator)
    rows = hessian = None
    if preset == "calibrated":
        # What calibration does to the format: classes of columns and of rows, and their scales.
        rows = torch.exp(torch.randn(shape[0], generator=generator))
        hessian = torch.diag(torch.exp(torch.randn(shape[1], generator=generator)))
        preset = "default"
    bank = TableBank()
    method: Ecsq | Neural = (
        Ecsq(tiles) if preset == "ecsq" else Neural(shipped_codec(preset, config.bits)[0], tiles)
    )
    layer = LayerWeight(name="weight", W=W, row_weights=rows)
    data = method.compress([layer], hessian, config.bits - 2.05, bank)[0].data
    return CompressedTensor(data, method.codec, bank)


def check(tensors: dict[str, CompressedTensor], device: torch.device) -> None:
    """Compare every kernel with its oracle.

    Raises:
        DiffersError: one gives something else.
    """
    for name, tensor in tensors.items():
        matrices = DeviceMatrices([tensor], device)
        (integers,) = matrices.integers()
        symbols, (places, _) = tensor.stream.symbols(), tensor.stream.patches
        same = integers.cpu().numpy() == symbols
        same.reshape(-1)[places] = True
        if not same.all():
            raise DiffersError(f"{name}: {int((~same).sum())} integers differ from the oracle's")
        expected = tensor.weight()
        for stored in (False, True):
            (found,) = DeviceMatrices([tensor], device, stored=stored).weights(torch.float32)
            if not torch.allclose(found.cpu(), expected, rtol=1e-5, atol=0):
                raise DiffersError(f"{name}: weights differ from the oracle's")
        W = (expected.T if tensor.stream.head.transposed else expected).double()
        x = torch.randn(3, W.shape[1], generator=torch.Generator().manual_seed(1))
        (y,) = DeviceProduct(matrices)(x.to(device))
        error = (y.cpu().double() - x.double() @ W.T).abs()
        if not bool((error <= 1e-5 * (x.double().abs() @ W.abs().T)).all()):
            raise DiffersError(f"{name}: a product is {float(error.max())} off")


def ceiling(bench: Bench) -> None:
    """How fast the device copies, for comparison."""
    size = 2**10 if bench.config.dry_run else 2**30
    source = torch.zeros(size, dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source), long=True)
    bench.note("ceiling", "copy, read and written", seconds, gigabytes=2 * size / seconds / 1e9)


def one_matrix(bench: Bench, tensors: dict[tuple[str, str], CompressedTensor]) -> None:
    """Entropy decoding alone, and to BF16 in three ways."""
    for (preset, profile), tensor in tensors.items():
        head, count = tensor.stream.head, int(np.prod(tensor.shape))
        facts = {
            "preset": preset,
            "profile": profile,
            "tiles": len(tensor.stream.tiles),
            "bits": 8 * len(tensor.stream.container.view) / count,
        }
        # One warp a program spreads few tiles; eight tiles a program fill a card sooner.
        for tiles in (2, 8):
            place = Place(0, head.chunks * 16, 1)
            parts = batch(
                [Coded.of(tensor.stream)], [place], tiles_per_program=tiles, padding=True
            )
            arrays, plan = DeviceBatch(parts, bench.device), Plan(parts, tiles, bench.device)
            out = torch.empty(
                head.columns * head.chunks * 16, dtype=torch.int16, device=bench.device
            )
            ways = {"scan": {"ballot": False, "ahead": 0}}
            if not bench.config.dry_run:
                ways["vote"] = {"ballot": True, "ahead": 0}
                ways["vote, words fetched ahead"] = {"ballot": True, "ahead": 64}
            for way, options in ways.items():
                seconds = bench.seconds(
                    lambda a=arrays, p=plan, o=out, k=options: a.run(p, "integers", o, **k)
                )
                what = f"integers, {way}, {tiles} tiles a program"
                bench.note("one matrix", what, seconds, gsymbols=count / seconds / 1e9, **facts)
        for stored in (False, True):
            matrices = DeviceMatrices([tensor], bench.device, check=False, stored=stored)
            out = matrices.buffer()
            seconds = bench.seconds(lambda m=matrices, o=out: m.decode_into(o))
            what = "BF16, " + ("rows of the checkpoint, one pass" if stored else "columns")
            bench.note("one matrix", what, seconds, gsymbols=count / seconds / 1e9, **facts)
            if not stored:
                view = matrices.views(out)[0]
                turned = torch.empty(view.shape, dtype=view.dtype, device=bench.device)
                seconds = bench.seconds(
                    lambda m=matrices, o=out, v=view, t=turned: (m.decode_into(o), t.copy_(v))
                )
                what = "BF16, rows of the checkpoint, with a copy"
                bench.note("one matrix", what, seconds, gsymbols=count / seconds / 1e9, **facts)


def nvcomp_ans(bench: Bench, tensor: CompressedTensor) -> None:
    """The same symbols, a byte each, through nvCOMP's ANS, if it is installed."""
    try:
        from nvidia import nvcomp  # noqa: PLC0415  (optional)
    except ImportError:
        bench.note("nvCOMP", "not installed (nvidia-nvcomp)", None)
        return
    symbols = np.clip(tensor.stream.symbols() >> bool(tensor.stream.tables.trellis), -128, 127)
    data = torch.from_numpy(symbols.astype(np.int8)).reshape(-1).to(bench.device)
    codec = nvcomp.Codec(algorithm="ANS")
    packed = codec.encode(nvcomp.as_array(data))
    if not torch.equal(torch.as_tensor(codec.decode(packed), device=bench.device).view(-1), data):
        raise DiffersError("nvCOMP did not give the symbols back")
    seconds = bench.seconds(lambda: codec.decode(packed), graph=False)
    bench.note(
        "nvCOMP", "ANS, symbols as bytes", seconds, gsymbols=data.numel() / seconds / 1e9,
        bits=8 * packed.buffer_size / data.numel(),
    )  # fmt: skip


def whole_model(
    bench: Bench, blocks: dict[str, dict[str, CompressedTensor]], shapes: Shapes
) -> None:
    """All matrices of a model in one batch."""
    count = shapes.weights * bench.config.layers
    for preset, block in blocks.items():
        matrices = DeviceMatrices(
            list(block.values()) * bench.config.layers, bench.device, check=False
        )
        out = matrices.buffer()
        seconds = bench.seconds(lambda m=matrices, o=out: m.decode_into(o), long=True)
        matrices.check()
        bench.note(
            "model", "BF16, columns", seconds, preset=preset, weights=count,
            gsymbols=count / seconds / 1e9,
            gigabytes=(out.nbytes + matrices.bytes) / seconds / 1e9,
        )  # fmt: skip
        del matrices, out


def tokens(bench: Bench, blocks: dict[str, dict[str, CompressedTensor]], shapes: Shapes) -> None:
    """Linear layers of a token, or of a batch of them: BF16, decoded on the way, fused."""
    layers, device = bench.config.layers, bench.device
    batches = (1, 2) if bench.config.dry_run else (1, 8, 64)
    inputs = {
        n: torch.randn(max(batches), n, device=device).bfloat16()
        for _, n in shapes.matrices.values()
    }
    dense = [
        torch.randn(m, n, device=device).bfloat16()
        for _ in range(layers)
        for m, n in shapes.matrices.values()
    ]
    for size in batches:
        x = {n: v[:size] for n, v in inputs.items()}
        seconds = bench.seconds(
            lambda x=x, dense=dense: [linear(x[W.shape[1]], W) for W in dense], long=True
        )
        bench.note("tokens", "BF16", seconds, batch=size, tokens_per_second=size / seconds)
    del dense
    for preset, block in blocks.items():
        packed = [DeviceMatrices(list(block.values()), device, check=False) for _ in range(layers)]
        out = packed[0].buffer()
        weights = packed[0].views(out)

        def decode_then_multiply(
            x: dict[int, torch.Tensor],
            packed: list[DeviceMatrices] = packed,
            weights: list[torch.Tensor] = weights,
            out: torch.Tensor = out,
        ) -> None:
            for layer in packed:
                layer.decode_into(out)
                for W in weights:
                    linear(x[W.shape[1]], W)

        for size in batches:
            x = {n: v[:size] for n, v in inputs.items()}
            seconds = bench.seconds(lambda x=x, run=decode_then_multiply: run(x), long=True)
            facts = {"preset": preset, "batch": size, "tokens_per_second": size / seconds}
            bench.note("tokens", "decoded layer by layer", seconds, **facts)
        products = [DeviceProduct(layer) for layer in packed]
        for size in batches[:2]:
            widths = [n for _, n in shapes.matrices.values()]
            side_by_side = torch.cat([inputs[n][:size].float() for n in widths], dim=1)
            seconds = bench.seconds(
                lambda p=products, v=side_by_side: [each(v) for each in p], long=True
            )
            facts = {"preset": preset, "batch": size, "tokens_per_second": size / seconds}
            bench.note("tokens", "fused product", seconds, **facts)
        del packed, out, weights, products


COLUMNS = {
    "preset": "", "profile": "", "tiles": "", "batch": "", "bits": ".3f", "weights": ",",
    "gsymbols": ".1f", "gigabytes": ",.0f", "tokens_per_second": ",.1f",
}  # fmt: skip
HEADINGS = {"gsymbols": "G weights/s", "gigabytes": "GB/s", "tokens_per_second": "tokens/s"}


def markdown(facts: Row, rows: list[Row]) -> Iterator[str]:
    """The report, line by line."""
    yield f"# Decoding on {facts['device']}"
    yield ""
    yield (
        f"{facts['date']}, torch {facts['torch']}, Triton {facts['triton']}, "
        f"nwc {facts['nwc']}. `python benchmarks/gpu.py`: synthetic Gaussian weights, medians of "
        f"CUDA events around CUDA graphs, {facts['repeats']} runs of a single matrix with the L2 "
        "cache written over before each. Every kernel equals its oracle."
    )
    if facts["dry_run"]:
        yield ""
        yield "**Dry run in Triton's interpreter on a CPU: the times mean nothing.**"
    for table in dict.fromkeys(row["table"] for row in rows):
        mine = [row for row in rows if row["table"] == table]
        shown = [key for key in COLUMNS if any(key in row for row in mine)]
        yield ""
        yield f"## {table[0].upper()}{table[1:]}"
        yield ""
        yield "| | " + " | ".join([*(HEADINGS.get(key, key) for key in shown), "ms"]) + " |"
        yield "|---|" + "---|" * (len(shown) + 1)
        for row in mine:
            cells = [format(row[key], COLUMNS[key]) if key in row else "" for key in shown]
            time_taken = "" if row["seconds"] is None else f"{1e3 * row['seconds']:.3f}"
            yield f"| {row['what']} | " + " | ".join([*cells, time_taken]) + " |"


def run(config: Gpu) -> Path:
    """Check, measure, write; returns the Markdown file."""
    if config.dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    elif not torch.cuda.is_available():
        sys.exit("no GPU; --dry-run goes through the script on the CPU")
    bench = Bench(config)
    shapes, size = (TINY, 16) if config.dry_run else (LLAMA_8B, config.size)
    profiles = ("balanced",) if config.dry_run else ("balanced", "latency")
    single = {
        (preset, profile): compressed((size, size), preset, config, profile)
        for preset in ("ecsq", "light", "default", "calibrated")
        for profile in profiles
    }
    blocks: dict[str, dict[str, CompressedTensor]] = {}
    for preset in ("light", "calibrated"):
        made = {
            shape: compressed(shape, preset, config, "balanced")
            for shape in dict.fromkeys(shapes.matrices.values())
        }
        blocks[preset] = {name: made[shape] for name, shape in shapes.matrices.items()}
    named = {" ".join(key): tensor for key, tensor in single.items()}
    named |= {f"{p} {name}": t for p, block in blocks.items() for name, t in block.items()}
    try:
        check(named, bench.device)
        ceiling(bench)
        one_matrix(bench, single)
        nvcomp_ans(bench, single["light", profiles[0]])
        whole_model(bench, blocks, shapes)
        tokens(bench, blocks, shapes)
    except DiffersError as error:
        sys.exit(f"nothing is reported: {error}")
    device = platform.processor() if config.dry_run else torch.cuda.get_device_name()
    facts = {
        "device": device or "cpu",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "nwc": nwc.__version__,
        "repeats": config.repeats,
        "dry_run": config.dry_run,
    }
    stem = "-".join(facts["device"].lower().split()) + "_" + facts["date"]
    config.output.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(facts), *map(json.dumps, bench.rows)]
    (config.output / f"{stem}.jsonl").write_text("\n".join(lines) + "\n")
    page = config.output / f"{stem}.md"
    page.write_text("\n".join(markdown(facts, bench.rows)) + "\n")
    return page


if __name__ == "__main__":
    print(run(tyro.cli(Gpu)))
