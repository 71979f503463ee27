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
from nwc.coding.tables import MAX_SYMBOLS, TOTAL, FrequencyTable
from nwc.coding.tiling import OFF_THE_TRELLIS, Classes, DecodingTables, EncodingTables
from nwc.coding.trellis import Trellis
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


@njit(nogil=True, cache=True, boundscheck=False)
def _decode_paths(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    columns: NDArray[np.uint8],
    rows: NDArray[np.uint32],
    base: NDArray[np.uint32],
    entries: NDArray[np.uint64],
    integers: NDArray[np.int16],
) -> int:
    """As `_decode`, for tables that also depend on the row and on the state of a trellis.

    Args:
        words: as for `_decode`.
        states: as for `_decode`.
        columns: classes.
        rows: [chunks, 16], where a class's part of `base` holds the row's and lane's states.
        base: [classes, 16 * trellis states], first entry of the table.
        entries: [tables * 4096], see `_lookups`.
        integers: filled.
    """
    state = states.copy()
    path = np.zeros(16, np.uint32)
    position = 0
    available = len(words) - 16
    stride = np.uint32(base.shape[1])
    flat = base.reshape(-1)
    for column in range(len(columns)):
        first = np.uint32(columns[column]) * stride
        for chunk in range(len(rows)):
            out = integers[column, chunk]
            for lane in range(16):
                x = state[lane]
                entry = entries[flat[first + rows[chunk, lane] + path[lane]] + (x & _MASK)]
                low, high = np.uint32(entry), np.uint32(entry >> np.uint64(32))
                state[lane] = (low >> _WORD) * (x >> _SHIFT) + (low & np.uint32(0xFFFF))
                out[lane] = np.int16(high)
                path[lane] = (path[lane] >> np.uint32(1)) ^ (high >> _WORD)
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
def _encode_paths(
    integers: NDArray[np.int16],
    columns: NDArray[np.uint8],
    rows: NDArray[np.uint8],
    choice: NDArray[np.int64],
    frequencies: NDArray[np.uint64],
    starts: NDArray[np.uint64],
    first: NDArray[np.int64],
    words: NDArray[np.uint16],
) -> tuple[int, NDArray[np.uint64]]:
    """As `_encode`; choice [classes, 16, parities]."""
    state = np.full(16, _LOWER, np.uint64)
    position = len(words)
    odd = choice.shape[2] - 1
    for column in range(len(columns) - 1, -1, -1):
        for chunk in range(len(rows) - 1, -1, -1):
            for lane in range(15, -1, -1):
                n = integers[column, chunk, lane]
                table = choice[columns[column] + rows[chunk, lane], lane, n & odd]
                place = (n >> odd) - first[table]
                f = frequencies[table, place]
                x = state[lane]
                if x >= f << np.uint64(20):
                    position -= 1
                    words[position] = np.uint16(x & np.uint64(0xFFFF))
                    x >>= np.uint64(16)
                state[lane] = (x // f << np.uint64(12)) + x % f + starts[table, place]
    return position, state


@njit(nogil=True, cache=True, boundscheck=False)
def _stray_lane(integers: NDArray[np.int16], on_parity: int, on_bit: int) -> int:
    """The first lane whose integers [columns, chunks, 16] leave the trellis, or -1."""
    columns, chunks, _ = integers.shape
    for lane in range(16):
        path = np.int64(0)
        for column in range(columns):
            for chunk in range(chunks):
                n = np.int64(integers[column, chunk, lane])
                if (n ^ path) & 1:
                    return lane
                path = (path >> 1) ^ ((n & 1) * on_parity) ^ (((n >> 1) & 1) * on_bit)
    return -1


def _lookups(tables: DecodingTables) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """What `_decode_paths` reads, made once for all tiles of a matrix.

    Returns:
        Where the table of a class begins [classes, 16 * trellis states], and all that decoding
        needs of a slot, 4,096 of them for every table: what the path is changed by << 48 | the
        integer << 32 | frequency << 16 | slot - start.
    """
    found = tables.kernel_cache.get(__name__)
    if found is None:
        choice = tables.choice[..., None] if tables.trellis is None else tables.choice
        pairs = 2 * choice + np.arange(choice.shape[2])
        used, places = np.unique(pairs, return_inverse=True)
        entries = np.empty((len(used), TOTAL), dtype=np.uint64)
        for row, pair in zip(entries, used.tolist(), strict=True):
            row[:] = _entries(tables.tables[pair >> 1], pair & 1, tables.trellis)
        states = np.arange(1 if tables.trellis is None else tables.trellis.states)
        base = places.reshape(pairs.shape)[:, :, states & (pairs.shape[2] - 1)] * TOTAL
        found = base.reshape(len(base), -1).astype(np.uint32), entries.reshape(-1)
        tables.kernel_cache[__name__] = found
    return found


def _entries(table: FrequencyTable, parity: int, trellis: Trellis | None) -> NDArray[np.int64]:
    place = np.repeat(np.arange(len(table)), table.frequencies)
    offsets = np.arange(TOTAL) - table.starts()[place]
    symbols = table.first + np.arange(len(table))
    integers, change = symbols, np.zeros_like(symbols)
    if trellis is not None:
        integers = 2 * symbols + parity
        change = parity * trellis.on_parity ^ (symbols & 1) * trellis.on_bit
    each = change << 48 | (integers & 0xFFFF) << 32 | table.frequencies << 16
    return each[place] | offsets


def decode_tile(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    classes: Classes,
    tables: DecodingTables,
) -> NDArray[np.int16]:
    """`coding.tiling.TileDecoder` equal to the plain one integer for integer.

    Raises:
        BitstreamError: too few or too many words, or a lane that does not end at 2^16.
    """
    columns, rows = classes
    integers = np.empty((len(columns), len(rows), rans.LANES), dtype=np.int16)
    final = states.copy()
    padded = np.zeros(len(words) + rans.LANES, dtype=np.uint16)
    padded[: len(words)] = words
    if tables.trellis is None and not rows.any():
        packed = tables.packed.reshape(-1)
        read = _decode(
            padded, final, columns, len(rows), tables.choice, packed, tables.first, integers
        )
    else:
        base, entries = _lookups(tables)
        width = base.shape[1] // rans.LANES
        places = rows.astype(np.uint32) * np.uint32(base.shape[1])
        places += np.arange(rans.LANES, dtype=np.uint32) * np.uint32(width)
        read = _decode_paths(padded, final, columns, places, base, entries, integers)
    if read < 0:
        raise BitstreamError(f"a lane wants more than the tile's {len(words)} words")
    rans.check_end(final, read, len(words))
    return integers


def encode_tile(
    integers: NDArray[np.int16], classes: Classes, tables: EncodingTables
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """`coding.tiling.TileEncoder` equal to the plain one word for word.

    Raises:
        BitstreamError: the integers leave the trellis.
    """
    shape = (len(tables.tables), MAX_SYMBOLS)
    frequencies, starts = np.ones(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)
    for i, table in enumerate(tables.tables):
        frequencies[i, : len(table)] = table.frequencies
        starts[i, : len(table)] = table.starts()
    first = np.array([table.first for table in tables.tables], dtype=np.int64)
    words = np.empty(integers.size, dtype=np.uint16)
    columns, rows = classes
    choice = tables.choice
    if tables.trellis is None and not rows.any():
        position, state = _encode(integers, columns, choice, frequencies, starts, first, words)
        return words[position:].copy(), state.astype(np.uint32)
    if tables.trellis is None:
        choice = choice[..., None]
    else:
        stray = _stray_lane(integers, tables.trellis.on_parity, tables.trellis.on_bit)
        if stray >= 0:
            raise BitstreamError(OFF_THE_TRELLIS.format(stray))
    position, state = _encode_paths(
        integers, columns, rows, choice, frequencies, starts, first, words
    )
    return words[position:].copy(), state.astype(np.uint32)
