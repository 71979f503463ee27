"""Run by test_sanitised.py under AddressSanitizer: whatever the words and states of tiles hold,
the kernels stay inside the memory that they were given.

Arguments: the library, a seed and the number of rounds.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import crc32c
import numpy as np

from nwc.coding.bitstream import Index
from nwc.coding.container import Head
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, CodedTile, DecodingTables
from nwc.coding.trellis import TRELLISES
from nwc.errors import BitstreamError
from nwc.kernels import matrix_native, native_library
from nwc.kernels.matrix_native import NativeMatrix
from nwc.kernels.rans_native import decode_tiles
from nwc.kernels.synthesis_native import DTYPES, Output, Synthesis, Values


def random_tables(rng):
    trellis = TRELLISES.get(int(rng.choice([0, 4, 8, 32])))
    limit = 2**15 if trellis is None else 2**14
    tables = []
    for _ in range(int(rng.integers(1, 6))):
        size = int(rng.choice([1, 2, 17, 256]))
        marks = np.sort(rng.integers(1, 4096, size - 1))
        first = int(rng.choice([-limit, 0, limit - size]))
        tables.append(FrequencyTable(first, np.diff(marks, prepend=0, append=4096)))
    lanes = int(rng.choice([1, 16]))
    choice = rng.integers(0, len(tables), (int(rng.integers(1, 17)), lanes, 2)).repeat(
        16 // lanes, 1
    )
    choice = choice if trellis is not None else np.ascontiguousarray(choice[..., 0])
    return DecodingTables(tables, choice, trellis)


def decode_noise(rng):
    """Words that encode nothing, too few or too many of them, and any states at all."""
    tables = random_tables(rng)
    most = len(tables.choice)
    of_rows = int(rng.integers(0, most))
    chunks = int(rng.integers(1, 40))
    widths = rng.integers(0, 5, int(rng.integers(1, 11))).tolist()
    classes = Classes(
        rng.integers(0, most - of_rows, sum(widths)).astype(np.uint8),
        rng.integers(0, of_rows + 1, (chunks, 16)).astype(np.uint8),
    )
    tiles = []
    for width in widths:
        count = int(rng.integers(0, 16 * width * chunks + 40) * rng.choice([0.1, 0.5, 1]))
        words = rng.integers(0, 2**16, count).astype(np.uint16)
        states = (rng.integers(0, 2**32, 16) >> rng.integers(0, 32, 16)).astype(np.uint32)
        tiles.append(CodedTile(words, states, width))
    try:
        decode_tiles(tiles, classes, tables)
    except BitstreamError:
        return
    raise AssertionError("noise ended like a tile")


def restore(rng):
    """The largest and smallest integers that the values cover, at any shape."""
    columns, rows = int(rng.integers(1, 70)), int(rng.integers(1, 70))
    chunks = -(-rows // 16)
    count, first = int(rng.integers(1, 50)), -int(rng.integers(0, 50))
    classes = Classes(
        rng.integers(0, 8, columns).astype(np.uint8),
        rng.integers(0, 9, (chunks, 16)).astype(np.uint8),
    )
    integers = rng.choice([first, first + count - 1], (columns, chunks, 16)).astype(np.int16)
    values = Values(
        first=first,
        values=rng.normal(size=(16, count)).astype(np.float32),
        column_scales=np.ones(columns, np.float32),
        row_scales=np.ones(rows, np.float32),
    )
    dtype, by_column = str(rng.choice(DTYPES)), bool(rng.integers(2))
    out = np.empty((columns * rows, 4 if dtype == "float32" else 2), dtype=np.uint8)
    output = Output(
        address=out.ctypes.data,
        count=len(out),
        dtype=dtype,
        stride=rows if by_column else columns,
        by_column=by_column,
    )
    Synthesis(values, output).write(integers, classes, 0, 0)


def restore_noise(rng):
    """A whole matrix whose words encode nothing, most with checksums that hold."""
    tables = random_tables(rng)
    spacing = 1 if tables.trellis is None else 2
    low = min(0, spacing * min(table.first for table in tables.tables))
    high = max(0, spacing * (max(table.last for table in tables.tables) + 1))
    wide = rng.random() < 0.1  # tiles that do not fit the scratch at once
    rows, columns = int(rng.integers(1, 200)), int(rng.integers(1, 90))
    if wide:
        rows, columns = int(rng.integers(900, 1100)), int(rng.integers(60, 600))
    chunks = -(-rows // 16)
    tile_chunks = chunks if wide else int(rng.integers(1, chunks + 1))
    least = 60 if wide else 1
    tile_columns = int(rng.integers(least, min(columns, 250) + 1))
    count = -(-columns // tile_columns) * -(-chunks // tile_chunks)
    sizes = rng.integers(0, 16 * tile_columns * tile_chunks + 40, count)
    sizes = (sizes * rng.choice([0.1, 0.5, 1], count)).astype(np.int64)
    words = rng.integers(0, 2**16, int(sizes.sum())).astype("<u2")
    entries = (rng.integers(0, 2**32, (count, 18)) >> rng.integers(0, 16)).astype("<u4")
    entries[:, 0], starts = sizes, np.cumsum(sizes) - sizes
    sums = [crc32c.crc32c(words[a : a + n]) for a, n in zip(starts, sizes, strict=True)]
    entries[:, 1] = np.array(sums) ^ (rng.random(count) < 0.1)
    most = len(tables.choice)
    of_rows = int(rng.integers(0, most))
    classes = Classes(
        rng.integers(0, most - of_rows, columns).astype(np.uint8),
        rng.integers(0, of_rows + 1, (chunks, 16)).astype(np.uint8),
    )
    places = np.unique(rng.integers(0, 16 * chunks * columns, int(rng.integers(0, 9))))
    head = Head(rows, columns, tile_chunks, tile_columns, most, False, len(words))
    stream = SimpleNamespace(
        head=head,
        classes=classes,
        tables=tables,
        index=Index(entries, starts),
        container=SimpleNamespace(payload=words),
        patches=(places, rng.choice([low, min(high, 2**15 - 1)], len(places)).astype(np.int64)),
    )
    values = Values(
        first=low,
        values=np.ones((most, high - low + 1), np.float32),
        column_scales=np.ones(columns, np.float32),
        row_scales=np.ones(rows, np.float32),
    )
    dtype, by_column = str(rng.choice(DTYPES)), bool(rng.integers(2))
    out = np.empty(rows * columns * (4 if dtype == "float32" else 2), dtype=np.uint8)
    output = Output(
        address=out.ctypes.data,
        count=rows * columns,
        dtype=dtype,
        stride=rows if by_column else columns,
        by_column=by_column,
    )
    matrix_native.scratch.__dict__.clear()  # of exactly the size that this matrix wants
    if NativeMatrix(stream, Synthesis(values, output)).restore() is None:
        raise AssertionError("noise ended like a matrix")


def main() -> None:
    native_library.LIBRARY = Path(sys.argv[1])
    seed, rounds = int(sys.argv[2]), int(sys.argv[3])
    for level in native_library.levels():
        os.environ["NWC_NATIVE_LEVEL"] = level
        rng = np.random.default_rng(seed)
        for _ in range(rounds):
            decode_noise(rng)
            restore(rng)
            restore_noise(rng)
    print(f"{rounds} rounds at each of {', '.join(native_library.levels())}")  # noqa: T201


if __name__ == "__main__":
    main()
