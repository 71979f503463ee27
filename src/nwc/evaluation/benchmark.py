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

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nwc.codec.compressed import CompressedTensor
from nwc.coding import bitstream
from nwc.coding.bitstream import Bitstream
from nwc.coding.census import census, choose_tables
from nwc.coding.tables import TableBank
from nwc.coding.tiling import Classes, EncodingTables
from nwc.errors import ConfigError
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


def alternate(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each task, run in turn, after one uncounted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def bench_rans(bits: float = 4.0, symbols: int = 2**22, repeats: int = 7) -> dict[str, Any]:
    """Entropy coding alone: numba against constriction's Python interface, one core.

    Both decode the same Gaussian symbols under the same table.

    Args:
        bits: entropy of a symbol.
        symbols: how many, a multiple of 65,536.
        repeats: counted turns.

    Raises:
        ConfigError: constriction is not installed.
    """
    try:
        import constriction  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigError(
            'bench rans compares with constriction: pip install "neural-weight-compression[bench]"'
        ) from error
    rng = np.random.default_rng(0)
    deviation = 2**bits / np.sqrt(2 * np.pi * np.e)
    values = np.rint(rng.normal(size=symbols) * deviation).astype(np.int16)
    values = values.reshape(-1, 256, 16)
    classes = Classes.by_column(np.zeros(len(values), dtype=np.uint8), values.shape[1])
    tables = choose_tables(census(values, classes, 1), 1, None)
    table = tables[0][0]
    values = np.clip(values, table.first, table.last)
    data = bitstream.encode(
        values, classes, tables, rows=4096, tile_encoder=rans_numba.encode_tile
    )
    stream = Bitstream(data)
    _check_oracle(stream)

    model = constriction.stream.model.Categorical(
        (table.frequencies / 4096).astype(np.float32), perfect=False
    )
    message = (values.reshape(-1).astype(np.int32)) - np.int32(table.first)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(message, model)
    compressed = coder.get_compressed()

    def theirs_decode() -> np.ndarray:
        return constriction.stream.stack.AnsCoder(compressed).decode(model, symbols)

    def theirs_encode() -> object:
        return constriction.stream.stack.AnsCoder().encode_reverse(message, model)

    if not np.array_equal(theirs_decode(), message):
        raise AssertionError("constriction did not give the symbols back")
    encoding = EncodingTables([table], np.zeros((1, 16), dtype=np.int64))
    parts = [np.ascontiguousarray(part) for part in np.array_split(values, len(stream.tiles))]

    def ours_decode() -> object:
        return [
            rans_numba.decode_tile(stream.words(t), t.states, stream.classes_of(t), stream.tables)
            for t in stream.tiles
        ]

    def ours_encode() -> object:
        return [
            rans_numba.encode_tile(p, stream.classes_of(t), encoding)
            for p, t in zip(parts, stream.tiles, strict=True)
        ]

    decode = alternate({"numba": ours_decode, "constriction": theirs_decode}, repeats)
    encode = alternate({"numba": ours_encode, "constriction": theirs_encode}, repeats)
    return {
        "machine": machine(),
        "symbols": symbols,
        "bits_per_symbol": 16 * stream.head.words / symbols,
        "constriction_bits_per_symbol": 32 * len(compressed) / symbols,
        "decode": _rates(decode, symbols),
        "encode": _rates(encode, symbols),
    }


def _rates(seconds: dict[str, list[float]], symbols: int) -> dict[str, float]:
    return {
        "ratio_to_constriction": _ratio(seconds, "constriction", "numba"),
        "million_symbols_per_second": symbols / statistics.median(seconds["numba"]) / 1e6,
        "constriction_million_symbols_per_second": symbols
        / statistics.median(seconds["constriction"])
        / 1e6,
    }


def _check_oracle(stream: Bitstream) -> None:
    for i in (0, len(stream.tiles) - 1):
        if not np.array_equal(stream.tile(i), stream.tile(i, rans_numba.decode_tile)):
            raise AssertionError(f"numba and the oracle differ in tile {i}; nothing is timed")


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
        tensor = CompressedTensor(data, method.codec, bank)
        _check_oracle(tensor.stream)
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
            "ratio_to_safetensors": _ratio(seconds, "nwc", "safetensors"),
        },
        "encode": {
            "seconds": encode_seconds,
            "million_weights_per_second": W.numel() / encode_seconds / 1e6,
            "ratio_to_safetensors": encode_seconds / statistics.median(written["safetensors"]),
        },
    }
