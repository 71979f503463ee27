"""Speed of entropy coding alone, on one core: our kernels beside constriction's and zstd.

Scalar and trellis streams of the same number of symbols, with one table for all (one for each
parity), as matrices have that were compressed without calibration, and with eight classes of rows
half an octave apart, as they have with it. Times are those of the thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nwc.coding import bitstream, tiling
from nwc.coding.bitstream import Bitstream
from nwc.coding.census import Tables
from nwc.coding.tables import FrequencyTable, quantise
from nwc.coding.tiling import PROFILES, Classes, CodedTile, EncodingTables, tile_shape
from nwc.coding.trellis import TRELLISES, Trellis
from nwc.errors import ConfigError
from nwc.evaluation.benchmark import alternate, machine, ratio
from nwc.evaluation.other_formats import ZSTD_LEVEL, ZSTD_PACKAGE
from nwc.kernels import native_library, rans_native, rans_numba

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNKS = 256
STATES = 8
CLASSES = 8
IN_FLIGHT = 4

_Row = dict[str, Any]


def bench_rans(bits: float = 4.0, symbols: int = 2**22, repeats: int = 7) -> dict[str, Any]:
    """Kernels against constriction's Python interface, one core.

    Args:
        bits: entropy of a symbol; with classes, in their middle.
        symbols: how many, a multiple of 65,536.
        repeats: counted turns.

    Raises:
        ConfigError: constriction is not installed.
    """
    try:
        import constriction  # noqa: F401, PLC0415  (an extra)
    except ImportError as error:
        raise ConfigError(
            'bench rans compares with constriction: pip install "neural-weight-compression[bench]"'
        ) from error
    streams = {}
    for classes in (1, CLASSES):
        for name, trellis in (("scalar", None), ("trellis", TRELLISES[STATES])):
            _check_kernels(make_stream(bits, 2**13, classes, trellis)[0])
            stream, integers = make_stream(bits, symbols, classes, trellis)
            streams[name, classes] = stream
            if (name, classes) == ("scalar", 1):
                message = integers
    theirs = _Constriction(message, streams["scalar", 1].tables.tables[0])
    tasks: dict[str, Callable[[], object]] = {"constriction": theirs.decode}
    bytewise, skipped = _zstd(message)
    if bytewise is not None:
        tasks["zstd"] = bytewise.decode
    for (name, classes), stream in streams.items():
        for kernel, decode in _kernels(stream).items():
            tasks[f"{kernel}|{name}|{classes}"] = decode
    seconds = alternate(tasks, repeats, time.thread_time)
    rows = [_row("decode", "constriction", "scalar", 1, seconds["constriction"], symbols)]
    if bytewise is not None:
        row = _row("decode", bytewise.name, "scalar", 1, seconds["zstd"], symbols)
        rows.append(row | {"times constriction": ratio(seconds, "constriction", "zstd")})
    for task in list(tasks)[1 if bytewise is None else 2 :]:
        kernel, name, of = task.split("|")
        row = _row("decode", kernel, name, int(of), seconds[task], symbols)
        row["times constriction"] = ratio(seconds, "constriction", task)
        if name == "trellis":
            row["share of scalar speed"] = ratio(seconds, f"{kernel}|scalar|{of}", task)
        rows.append(row)
    rows += _encoding(streams["scalar", 1], message, theirs, bytewise, repeats)
    sizes = {} if bytewise is None else {"zstd_bits_per_symbol": 8 * len(bytewise.compressed)}
    return {
        "machine": machine(),
        "symbols": symbols,
        "bits_per_symbol": 16 * streams["scalar", 1].head.words / symbols,
        "constriction_bits_per_symbol": 32 * len(theirs.compressed) / symbols,
        **{name: bits / symbols for name, bits in sizes.items()},
        **skipped,
        "rows": rows,
    }


def _row(
    operation: str, coder: str, profile: str, classes: int, seconds: list[float], symbols: int
) -> _Row:
    return {
        "operation": operation,
        "coder": coder,
        "profile": profile,
        "classes": classes,
        "M symbols/s": symbols / statistics.median(seconds) / 1e6,
    }


def make_stream(
    bits: float, symbols: int, classes: int, trellis: Trellis | None
) -> tuple[Bitstream, NDArray[np.int16]]:
    """A stream of symbols drawn from its tables, and its integers [columns, 256, 16]."""
    rng = np.random.default_rng(0)
    tables = _gaussian_tables(bits, classes, trellis)
    columns = symbols // (CHUNKS * 16)
    rows = rng.integers(0, classes, (CHUNKS, 16)).astype(np.uint8)
    of = Classes(np.zeros(columns, dtype=np.uint8), rows)
    _, width = tile_shape(CHUNKS, columns, PROFILES["balanced"])
    integers = np.concatenate(
        [
            _draw(rng, tables, rows, min(width, columns - start), trellis)
            for start in range(0, columns, width)
        ]
    )
    data = bitstream.encode(
        integers,
        of,
        tables,
        rows=16 * CHUNKS,
        trellis=trellis,
        tile_encoder=rans_numba.encode_tile,
    )
    return Bitstream(data), integers


def _gaussian_tables(bits: float, classes: int, trellis: Trellis | None) -> Tables:
    """For every class, half an octave apart, a table; with a trellis one for each parity."""
    tables = []
    for group in range(classes):
        middle = bits + 0.5 * (group - (classes - 1) / 2)
        deviation = 2**middle / np.sqrt(2 * np.pi * np.e)
        symbols = np.arange(-127, 128)
        parities = (0, 1) if trellis is not None else (0,)
        row = []
        for parity in parities:
            weights = np.exp(-0.5 * ((symbols + parity / 2) / deviation) ** 2)
            frequencies = quantise(np.where(weights > 1e-5, weights, 0))
            used = np.flatnonzero(frequencies)
            part = frequencies[used[0] : used[-1] + 1]
            row.append(FrequencyTable(int(symbols[used[0]]), part))
        tables.append(row)
    return tables


def _draw(
    rng: np.random.Generator,
    tables: Tables,
    rows: NDArray[np.uint8],
    columns: int,
    trellis: Trellis | None,
) -> NDArray[np.int16]:
    """Integers of one tile: each lane a path, each symbol drawn by a random slot of its table."""
    slots = np.array([[_symbols_of_slots(table) for table in row] for row in tables])
    drawn = rng.integers(0, slots.shape[2], (columns, CHUNKS, 16))
    if trellis is None:
        return slots[rows, 0, drawn].astype(np.int16)
    integers = np.empty(drawn.shape, dtype=np.int16)
    path = np.zeros(16, dtype=np.int64)
    for column in range(columns):
        for chunk in range(CHUNKS):
            parity = path & 1
            symbol = slots[rows[chunk], parity, drawn[column, chunk]]
            integers[column, chunk] = 2 * symbol + parity
            path = path >> 1 ^ parity * trellis.on_parity ^ (symbol & 1) * trellis.on_bit
    return integers


def _symbols_of_slots(table: FrequencyTable) -> NDArray[np.int64]:
    return np.repeat(table.first + np.arange(len(table)), table.frequencies)


def _kernels(stream: Bitstream) -> dict[str, Callable[[], list[NDArray[np.int16]]]]:
    """Decoders of a whole stream by name, without checksums."""
    found: dict[str, Callable[[], list[NDArray[np.int16]]]] = {"numba": partial(_by_numba, stream)}
    for level in native_library.levels() if native_library.available() else ():
        found[f"native {level}"] = partial(_by_native, stream, level)
    return found


def _by_numba(stream: Bitstream) -> list[NDArray[np.int16]]:
    return [
        rans_numba.decode_tile(stream.words(t), t.states, stream.classes_of(t), stream.tables)
        for t in stream.tiles
    ]


def _by_native(stream: Bitstream, level: str) -> list[NDArray[np.int16]]:
    out = []
    with native_library.forced(level):
        for numbers in stream.bands(IN_FLIGHT):
            tiles = [stream.tiles[i] for i in numbers]
            coded = [CodedTile(stream.words(t), t.states, t.columns) for t in tiles]
            whole = tiles[0]._replace(columns=sum(t.columns for t in tiles))
            out.append(rans_native.decode_tiles(coded, stream.classes_of(whole), stream.tables))
    return out


def _check_kernels(stream: Bitstream) -> None:
    expected = np.concatenate(
        [stream.tile(i, tiling.decode_tile) for i in range(len(stream.tiles))]
    )
    for name, decode in _kernels(stream).items():
        if not np.array_equal(np.concatenate(decode()), expected):
            raise AssertionError(f"{name} and the oracle differ; nothing is timed")


class _Constriction:
    """The same symbols under the same table by constriction's ANS coder."""

    def __init__(self, integers: NDArray[np.int16], table: FrequencyTable) -> None:
        import constriction  # noqa: PLC0415  (an extra)

        self._coder = constriction.stream.stack.AnsCoder
        self._model = constriction.stream.model.Categorical(
            (table.frequencies / 4096).astype(np.float32), perfect=False
        )
        self.message = integers.reshape(-1).astype(np.int32) - np.int32(table.first)
        coder = self._coder()
        coder.encode_reverse(self.message, self._model)
        self.compressed = coder.get_compressed()
        if not np.array_equal(self.decode(), self.message):
            raise AssertionError("constriction did not give the symbols back")

    def decode(self) -> NDArray[np.int32]:
        return self._coder(self.compressed).decode(self._model, len(self.message))

    def encode(self) -> object:
        return self._coder().encode_reverse(self.message, self._model)


class _Zstd:
    """The same symbols, a byte each, by zstd, which knows nothing of their table."""

    def __init__(self, integers: NDArray[np.int16]) -> None:
        import zstandard

        self.name = f"zstd level {ZSTD_LEVEL}"
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()
        self._message = integers.astype(np.int8).tobytes()
        self.compressed: bytes = self.encode()
        if self.decode() != self._message or not np.array_equal(
            np.frombuffer(self._message, np.int8).reshape(integers.shape), integers
        ):
            raise AssertionError("zstd did not give the symbols back")

    def decode(self) -> bytes:
        found: bytes = self._decompressor.decompress(self.compressed)
        return found

    def encode(self) -> bytes:
        found: bytes = self._compressor.compress(self._message)
        return found


def _zstd(integers: NDArray[np.int16]) -> tuple[_Zstd | None, dict[str, dict[str, str]]]:
    """zstd, or what the result says if there is none."""
    try:
        return _Zstd(integers), {}
    except ImportError as error:
        return None, {"skipped": {"zstd": f"{error}: pip install {ZSTD_PACKAGE}"}}


def _encoding(
    stream: Bitstream,
    integers: NDArray[np.int16],
    theirs: _Constriction,
    bytewise: _Zstd | None,
    repeats: int,
) -> list[_Row]:
    tables = EncodingTables(stream.tables.tables, stream.tables.choice)
    parts = [np.ascontiguousarray(integers[t.column : t.column + t.columns]) for t in stream.tiles]

    def ours() -> object:
        return [
            rans_numba.encode_tile(part, stream.classes_of(t), tables)
            for part, t in zip(parts, stream.tiles, strict=True)
        ]

    tasks: dict[str, Callable[[], object]] = {"constriction": theirs.encode, "numba": ours}
    if bytewise is not None:
        tasks[bytewise.name] = bytewise.encode
    seconds = alternate(tasks, repeats, time.thread_time)
    rows = [_row("encode", name, "scalar", 1, seconds[name], integers.size) for name in seconds]
    for row in rows[1:]:
        row["times constriction"] = ratio(seconds, "constriction", row["coder"])
    return rows
