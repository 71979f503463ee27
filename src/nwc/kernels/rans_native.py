"""Interleaved rANS in C: the fastest kernel beside the oracle `coding.rans`.

Several tiles side by side decode in one call, in turns, so that the waiting times of one are the
working times of another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.coding import rans
from nwc.coding.tables import TOTAL
from nwc.coding.tiling import Classes, CodedTile, DecodingTables
from nwc.errors import BitstreamError
from nwc.kernels import native_library

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TILE = np.dtype(
    [
        ("words", np.uintp),
        ("word_count", np.int64),
        ("classes", np.uintp),
        ("columns", np.int64),
        ("integers", np.uintp),
        ("stride", np.int64),
        ("states", np.uint32, rans.LANES),
        ("read", np.int64),
    ],
    align=True,
)
"""`nwc_tile` of nwc.h."""


class Lookups(NamedTuple):
    """What the decoder reads; the struct points into the arrays."""

    struct: native_library.Tables
    arrays: tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]]


def lookups(tables: DecodingTables) -> Lookups:
    """Made once for all tiles of a matrix."""
    found = tables.kernel_cache.get(__name__)
    if found is None:
        found = tables.kernel_cache[__name__] = _made(tables)
    return found


def _made(tables: DecodingTables) -> Lookups:
    frequencies = np.concatenate([table.frequencies for table in tables.tables]).astype(np.uint16)
    sizes = np.array([len(table) for table in tables.tables], dtype=np.int64)
    entries = np.empty((len(sizes), TOTAL), dtype=np.uint32)
    native_library.library().nwc_fill_entries(
        frequencies.ctypes.data, sizes.ctypes.data, len(sizes), entries.ctypes.data
    )
    # Scalar streams stay at parity 0; the other half is there so that the shape is one.
    trellis = tables.trellis
    choice = tables.choice[..., None].repeat(2, 2) if trellis is None else tables.choice
    first = tables.first[choice]
    if trellis is not None:
        first = 2 * first + np.arange(2)
    base = np.ascontiguousarray((choice * TOTAL).transpose(0, 2, 1), dtype=np.uint32)
    firsts = np.ascontiguousarray(first.transpose(0, 2, 1), dtype=np.int32)
    machine = (0, 0, 0) if trellis is None else tuple(trellis)
    struct = native_library.Tables(
        entries.ctypes.data, base.ctypes.data, firsts.ctypes.data, len(choice), *machine
    )
    return Lookups(struct, (entries, base, firsts))


def decode_tiles(
    tiles: Sequence[CodedTile], classes: Classes, tables: DecodingTables
) -> NDArray[np.int16]:
    """Integers [columns, chunks, 16] of tiles side by side, each as `coding.tiling` decodes it.

    Args:
        tiles: from left to right.
        classes: of all of them.
        tables: of the matrix.

    Raises:
        BitstreamError: a tile has too few or too many words, or a lane does not end at 2^16.
    """
    library, level = native_library.library(), native_library.level()
    columns = np.ascontiguousarray(classes.columns)
    rows = np.ascontiguousarray(classes.rows)
    # Columns an odd number of cache lines apart: whoever reads across them then finds each in a
    # place of its own, not all in one set of the cache.
    spare = 2 if len(tiles) > 1 and len(rows) % 4 == 0 else 0
    whole = np.empty((len(columns), len(rows) + spare, rans.LANES), dtype=np.int16)
    integers = whole[:, : len(rows)]
    words = [np.ascontiguousarray(tile.words, dtype="<u2") for tile in tiles]
    jobs = np.zeros(len(tiles), dtype=_TILE)
    place = 0
    for job, tile, data in zip(jobs, tiles, words, strict=True):
        job["words"], job["word_count"] = data.ctypes.data, len(data)
        job["classes"], job["columns"] = columns.ctypes.data + place, tile.columns
        job["integers"] = whole.ctypes.data + place * whole.strides[0]
        job["stride"] = whole.strides[0] // whole.itemsize
        job["states"] = tile.states
        place += tile.columns
    if place != len(columns):
        raise ValueError(f"tiles have {place} columns, their classes {len(columns)}")
    struct = lookups(tables).struct
    library.nwc_decode(
        level,
        ctypes.byref(struct),
        jobs.ctypes.data,
        len(jobs),
        rows.ctypes.data,
        len(rows),
    )
    for job, tile in zip(jobs, tiles, strict=True):
        if job["read"] == -1:
            raise BitstreamError(
                f"{tile.name}a lane wants more than the tile's {len(tile.words)} words"
            )
    for job, tile in zip(jobs, tiles, strict=True):
        try:
            rans.check_end(job["states"], int(job["read"]), len(tile.words))
        except BitstreamError as error:
            raise BitstreamError(f"{tile.name}{error}") from error
    return integers


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
    return decode_tiles([CodedTile(words, states, len(classes.columns))], classes, tables)
