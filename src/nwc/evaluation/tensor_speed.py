"""Speed of whole matrices: weights to bytes, and bytes to BF16 weights."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nwc.codec.compressed import CompressedTensor
from nwc.coding.tables import TableBank
from nwc.evaluation.benchmark import alternate, check_small, machine, ratio
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


def _gaussian(size: int) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0))


def bench_decode(
    methods: dict[str, LayerMethod], log2_gain: float, size: int = 4096, repeats: int = 7
) -> dict[str, Any]:
    """Bytes to a BF16 matrix, parsing and every checksum included, in one and two threads.

    Beside it safetensors reads the same matrix in BF16 from the page cache into memory of its own.

    Args:
        methods: how to compress, by name.
        log2_gain: at which gain.
        size: rows and columns.
        repeats: counted turns.
    """
    rows = []
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.safetensors"
        save_file({"weight": _gaussian(size).bfloat16()}, path)
        for name, method in methods.items():
            check_small(method, log2_gain)
            bank = TableBank()
            layer = [LayerWeight(name="weight", W=_gaussian(size))]
            data = method.compress(layer, None, log2_gain, bank)[0].data
            rows += _decoding(name, data, method, bank, path, repeats)
    return {"machine": machine(), "shape": [size, size], "rows": rows}


def _decoding(
    name: str, data: bytes, method: LayerMethod, bank: TableBank, path: Path, repeats: int
) -> list[dict[str, Any]]:
    def decode(threads: int, decoder: Any = None) -> object:  # noqa: ANN401
        tensor = CompressedTensor(data, method.codec, bank)
        if threads == 1:
            return tensor.weight(torch.bfloat16, decoder=decoder)
        return tensor.weight(torch.bfloat16, decoder=decoder, executor=pools[threads])

    pools = {threads: ThreadPoolExecutor(threads) for threads in THREADS if threads > 1}
    tasks: dict[str, Callable[[], object]] = {
        "safetensors": lambda: load_file(path)["weight"].clone()
    }
    for threads in THREADS:
        tasks[f"{backend()}|{threads}"] = partial(decode, threads)
    if backend() != "numba":
        tasks["numba|1"] = partial(decode, 1, rans_numba.decode_tile)
    seconds = alternate(tasks, repeats)
    for pool in pools.values():
        pool.shutdown()
    weights = CompressedTensor(data, method.codec, bank).weight().numel()
    rows = []
    for task in list(tasks)[1:]:
        kernel, threads_used = task.split("|")
        rows.append(
            {
                "preset": name,
                "bits": 8 * len(data) / weights,
                "decoder": kernel,
                "threads": int(threads_used),
                "seconds": statistics.median(seconds[task]),
                "M weights/s": weights / statistics.median(seconds[task]) / 1e6,
                "times safetensors' time": ratio(seconds, task, "safetensors"),
            }
        )
    return rows


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
