"""Interleaved rANS in numba: the kernel beside the oracle `coding.rans`.

The oracle's loops, on flat arrays and without the interpreter lock, so that tiles code in parallel
threads. A step of the decoder first advances its 16 lanes independently, then refills them in lane
order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from nwc.coding import rans
from nwc.coding.tables import MAX_SYMBOLS, TOTAL
from nwc.coding.tiling import DecodingTables, EncodingTables
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASK = np.uint32(TOTAL - 1)
_LOWER = np.uint32(rans.LOWER)
_SHIFT = np.uint32(12)
_SYMBOL_SHIFT = np.uint32(24)
_WORD = np.uint32(16)


@njit(nogil=True, cache=True, boundscheck=False)
def _decode(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    chunks: int,
    choice: NDArray[np.int64],
    packed: NDArray[np.uint32],
    first: NDArray[np.int64],
    symbols: NDArray[np.int16],
) -> int:
    """Fill symbols [columns, chunks, 16]; returns the words read, or -1 if they run out.

    The array of words ends with 16 more than the tile has, so that one check a step is enough.
    """
    state = states.copy()
    base = np.empty(16, np.uint32)
    offset = np.empty(16, np.int16)
    position = 0
    available = len(words) - 16
    for column in range(len(classes)):
        for lane in range(16):
            table = choice[classes[column], lane]
            base[lane] = table * 4096
            offset[lane] = first[table]
        for chunk in range(chunks):
            out = symbols[column, chunk]
            for lane in range(16):
                x = state[lane]
                entry = packed[base[lane] + (x & _MASK)]
                frequency = ((entry >> _SHIFT) & _MASK) + np.uint32(1)
                state[lane] = frequency * (x >> _SHIFT) + (entry & _MASK)
                out[lane] = np.int16(entry >> _SYMBOL_SHIFT) + offset[lane]
            for lane in range(16):
                x = state[lane]
                refill = x < _LOWER
                state[lane] = (x << _WORD) | np.uint32(words[position]) if refill else x
                position += refill
            if position > available:
                return -1
    states[:] = state
    return position


@njit(nogil=True, cache=True, boundscheck=False)
def _encode(
    symbols: NDArray[np.int16],
    classes: NDArray[np.uint8],
    choice: NDArray[np.int64],
    frequencies: NDArray[np.uint64],
    starts: NDArray[np.uint64],
    first: NDArray[np.int64],
    words: NDArray[np.uint16],
) -> tuple[int, NDArray[np.uint64]]:
    """Fill words from the end; returns the place of the first one and the states [16]."""
    state = np.full(16, _LOWER, np.uint64)
    position = len(words)
    chunks = symbols.shape[1]
    for column in range(len(classes) - 1, -1, -1):
        row = choice[classes[column]]
        for chunk in range(chunks - 1, -1, -1):
            for lane in range(15, -1, -1):
                table = row[lane]
                place = symbols[column, chunk, lane] - first[table]
                f = frequencies[table, place]
                x = state[lane]
                if x >= f << np.uint64(20):
                    position -= 1
                    words[position] = np.uint16(x & np.uint64(0xFFFF))
                    x >>= np.uint64(16)
                state[lane] = (x // f << np.uint64(12)) + x % f + starts[table, place]
    return position, state


def decode_tile(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    chunks: int,
    tables: DecodingTables,
) -> NDArray[np.int16]:
    """`coding.tiling.TileDecoder` equal to the plain one symbol for symbol.

    Raises:
        BitstreamError: too few or too many words, or a lane that does not end at 2^16.
    """
    symbols = np.empty((len(classes), chunks, rans.LANES), dtype=np.int16)
    final = states.copy()
    packed = tables.packed.reshape(-1)
    padded = np.zeros(len(words) + rans.LANES, dtype=np.uint16)
    padded[: len(words)] = words
    read = _decode(padded, final, classes, chunks, tables.choice, packed, tables.first, symbols)
    if read < 0:
        raise BitstreamError(f"a lane wants more than the tile's {len(words)} words")
    rans.check_end(final, read, len(words))
    return symbols


def encode_tile(
    symbols: NDArray[np.int16], classes: NDArray[np.uint8], tables: EncodingTables
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """`coding.tiling.TileEncoder` equal to the plain one word for word."""
    shape = (len(tables.tables), MAX_SYMBOLS)
    frequencies, starts = np.ones(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)
    for i, table in enumerate(tables.tables):
        frequencies[i, : len(table)] = table.frequencies
        starts[i, : len(table)] = table.starts()
    first = np.array([table.first for table in tables.tables], dtype=np.int64)
    words = np.empty(symbols.size, dtype=np.uint16)
    position, state = _encode(symbols, classes, tables.choice, frequencies, starts, first, words)
    return words[position:].copy(), state.astype(np.uint32)
