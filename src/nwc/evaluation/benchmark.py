"""Speed, as ratios measured side by side in one process on one core.

Machines differ and are shared; a ratio of medians of alternating runs survives both. Nothing is
timed before the kernel has equalled its oracle on a sample of the same data.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nwc.codec.compressed import CompressedTensor
from nwc.coding import tiling
from nwc.coding.tables import TableBank
from nwc.kernels import rans_numba
from nwc.methods.base import LayerMethod, LayerWeight


def machine() -> str:
    """Processor and core count."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} threads, {platform.system()} {platform.machine()}"


def alternate(
    tasks: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each task, run in turn, after one uncounted turn.

    Args:
        tasks: by name.
        repeats: counted turns.
        clock: `time.thread_time` for work of one thread that waits for nothing: on a shared
            machine it stands still while others run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = clock()
            task()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over turns of one task's time over another's."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def check_small(method: LayerMethod, log2_gain: float) -> None:
    """Raise AssertionError unless a small matrix decodes as the oracle decodes it.

    Entropy decoder and synthesis, in every way that is timed, FP32 and BF16.
    """
    W = torch.randn(80, 70, generator=torch.Generator().manual_seed(1))
    bank = TableBank()
    data = method.compress([LayerWeight(name="weight", W=W)], None, log2_gain, bank)[0].data
    tensor = CompressedTensor(data, method.codec, bank)
    for dtype in (torch.float32, torch.bfloat16):
        expected = tensor.weight(dtype, decoder=tiling.decode_tile)
        for decoder in (None, rans_numba.decode_tile):
            if not torch.equal(tensor.weight(dtype, decoder=decoder), expected):
                raise AssertionError(f"{method.codec.config.kind}: a kernel differs; not timed")


def bench_tensor(
    method: LayerMethod, log2_gain: float, size: int = 4096, repeats: int = 3
) -> dict[str, Any]:
    """A whole matrix: FP32 weights to bytes (data-free) and bytes to BF16 weights, one core.

    The plain alternative beside it writes the same matrix in BF16 with safetensors, and reads it
    from the page cache into memory of its own. Ratios are our time over its time.

    Args:
        method: how to compress.
        log2_gain: at which gain.
        size: rows and columns.
        repeats: counted turns.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        W = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        bank = TableBank()
        layer = [LayerWeight(name="weight", W=W)]
        start = time.perf_counter()
        data = method.compress(layer, None, log2_gain, bank)[0].data
        encode_seconds = time.perf_counter() - start
        check_small(method, log2_gain)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weight.safetensors"
            stored = {"weight": W.bfloat16()}
            written = alternate({"safetensors": lambda: save_file(stored, path)}, repeats)
            seconds = alternate(
                {
                    "nwc": lambda: CompressedTensor(data, method.codec, bank).weight(
                        torch.bfloat16
                    ),
                    "safetensors": lambda: load_file(path)["weight"].clone(),
                },
                repeats,
            )
    finally:
        torch.set_num_threads(threads)
    return {
        "machine": machine(),
        "shape": [size, size],
        "bits_per_parameter": 8 * len(data) / W.numel(),
        "decode": {
            "seconds": statistics.median(seconds["nwc"]),
            "million_weights_per_second": W.numel() / statistics.median(seconds["nwc"]) / 1e6,
            "ratio_to_safetensors": ratio(seconds, "nwc", "safetensors"),
        },
        "encode": {
            "seconds": encode_seconds,
            "million_weights_per_second": W.numel() / encode_seconds / 1e6,
            "ratio_to_safetensors": encode_seconds / statistics.median(written["safetensors"]),
        },
    }
