"""Run by test_sanitised.py under AddressSanitizer: whatever the words and states of tiles hold,
the kernels stay inside the memory that they were given.

Arguments: the library, a seed and the number of rounds.
"""

import os
import sys
from pathlib import Path

import numpy as np

from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, CodedTile, DecodingTables
from nwc.coding.trellis import TRELLISES
from nwc.errors import BitstreamError
from nwc.kernels import native_library
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


def main() -> None:
    native_library.LIBRARY = Path(sys.argv[1])
    seed, rounds = int(sys.argv[2]), int(sys.argv[3])
    for level in native_library.levels():
        os.environ["NWC_NATIVE_LEVEL"] = level
        rng = np.random.default_rng(seed)
        for _ in range(rounds):
            decode_noise(rng)
            restore(rng)
    print(f"{rounds} rounds at each of {', '.join(native_library.levels())}")  # noqa: T201


if __name__ == "__main__":
    main()
