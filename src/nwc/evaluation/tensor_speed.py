"""Speed of whole matrices: weights to bytes, and bytes to BF16 weights."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nwc.codec.compressed import CompressedTensor
from nwc.coding.tables import TableBank
from nwc.coding.tiling import TileDecoder
from nwc.evaluation.benchmark import alternate, check_small, machine, ratio
from nwc.evaluation.other_formats import other_formats, relative_error
from nwc.kernels import rans_numba
from nwc.kernels.backend import backend
from nwc.methods.base import LayerMethod, LayerWeight

THREADS = (1, 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch itself computes in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gaussian(size: int) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0))


def bench_decode(
    methods: dict[str, LayerMethod], log2_gain: float, size: int = 4096, repeats: int = 7
) -> dict[str, Any]:
    """Bytes to a BF16 matrix, parsing and every checksum included, in one and two threads.

    Beside it safetensors reads the same matrix in BF16 from the page cache into memory of its own,
    and packages that are installed decode it from formats of theirs, in one thread. All take turns
    in one run.

    Args:
        methods: how to compress, by name.
        log2_gain: at which gain.
        size: rows and columns.
        repeats: counted turns.
    """
    W = _gaussian(size)
    pools = {threads: ThreadPoolExecutor(threads) for threads in THREADS if threads > 1}
    tasks: dict[str, Callable[[], Tensor]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.safetensors"
        save_file({"weight": W.bfloat16()}, path)
        for name, method in methods.items():
            check_small(method, log2_gain)
            bank = TableBank()
            layer = [LayerWeight(name="weight", W=W)]
            data = method.compress(layer, None, log2_gain, bank)[0].data
            for task, kernel, threads in _ways():
                decoder = rans_numba.decode_tile if kernel != backend() else None
                tasks[name + task] = partial(
                    _decode, data, method, bank, decoder, pools.get(threads)
                )
                rows[name + task] = {
                    "preset": name,
                    "bits": 8 * len(data) / W.numel(),
                    "decoder": kernel,
                    "threads": threads,
                }
        others, skipped = other_formats(W)
        for name, other in others.items():
            tasks[name] = other.decode
            rows[name] = {
                "preset": name,
                "bits": other.bits,
                "decoder": other.package,
                "threads": 1,
            }
        for name, row in rows.items():
            row["relative error"] = relative_error(tasks[name](), W)
        seconds = alternate(
            {"safetensors": lambda: load_file(path)["weight"].clone(), **tasks}, repeats
        )
    for pool in pools.values():
        pool.shutdown()
    for name, row in rows.items():
        row["seconds"] = statistics.median(seconds[name])
        row["M weights/s"] = W.numel() / row["seconds"] / 1e6
        row["times safetensors' time"] = ratio(seconds, name, "safetensors")
    return {
        "machine": machine(),
        "shape": [size, size],
        **({"skipped": skipped} if skipped else {}),
        "rows": list(rows.values()),
    }


def _ways() -> list[tuple[str, str, int]]:
    """Kernels and threads to decode with, and a name for each."""
    ways = [(backend(), threads) for threads in THREADS]
    if backend() != "numba":
        ways.append(("numba", 1))
    return [(f"|{kernel}|{threads}", kernel, threads) for kernel, threads in ways]


def _decode(
    data: bytes,
    method: LayerMethod,
    bank: TableBank,
    decoder: TileDecoder | None,
    pool: Executor | None,
) -> Tensor:
    tensor = CompressedTensor(data, method.codec, bank)
    return tensor.weight(torch.bfloat16, decoder=decoder, executor=pool)


def bench_encode(
    methods: dict[str, LayerMethod], log2_gain: float, size: int = 4096, repeats: int = 2
) -> dict[str, Any]:
    """FP32 weights to bytes, data-free, one core; beside it safetensors writes them in BF16.

    Args: as `bench_decode`.
    """
    W = _gaussian(size)
    rows = []
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.safetensors"
        stored = {"weight": W.bfloat16()}
        for name, method in methods.items():
            check_small(method, log2_gain)
            layer = [LayerWeight(name="weight", W=W)]
            tasks: dict[str, Callable[[], object]] = {
                "safetensors": partial(save_file, stored, path),
                "nwc": partial(_compress, method, layer, log2_gain),
            }
            seconds = alternate(tasks, repeats)
            rows.append(
                {
                    "preset": name,
                    "seconds": statistics.median(seconds["nwc"]),
                    "M weights/s": W.numel() / statistics.median(seconds["nwc"]) / 1e6,
                    "times safetensors' time": ratio(seconds, "nwc", "safetensors"),
                }
            )
    return {"machine": machine(), "shape": [size, size], "rows": rows}


def _compress(method: LayerMethod, layer: list[LayerWeight], log2_gain: float) -> object:
    return method.compress(layer, None, log2_gain, TableBank())
