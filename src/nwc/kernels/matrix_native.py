"""Whole matrices in C: from the words of their tiles to weights in place.

One call of a thread takes bands of tiles until none is left, so that threads share a matrix
without a word of Python between two bands. The oracle is `codec.compressed` with any other kernel.
"""

from __future__ import annotations

import ctypes
import threading

import numpy as np

from nwc.coding.bitstream import Bitstream
from nwc.kernels import native_library, rans_native
from nwc.kernels.synthesis_native import Synthesis

scratch = threading.local()
"""Memory of each thread, kept from matrix to matrix: new memory costs a fault a page."""


class NativeMatrix:
    """One matrix, restored once.

    Args:
        stream: its words; patches and integers of tables are such that `synthesis` has values.
        synthesis: of the whole matrix.
        owner: of the memory that weights go to, if it could be freed while a thread is at work.
    """

    def __init__(self, stream: Bitstream, synthesis: Synthesis, owner: object = None) -> None:
        head = stream.head
        places, values = stream.patches
        tables = rans_native.lookups(stream.tables)
        whole = synthesis.struct(stream.classes)
        # What the struct points into must live as long as it does.
        self._owned = (stream, synthesis, tables, whole, owner)
        self._struct = native_library.Matrix(
            tables=ctypes.addressof(tables.struct),
            synthesis=ctypes.addressof(whole),
            words=stream.container.payload.ctypes.data,
            index=stream.index.entries.ctypes.data,
            starts=stream.index.starts.ctypes.data,
            places=places.ctypes.data,
            values=values.ctypes.data,
            patches=len(places),
            chunks=head.chunks,
            tile_columns=head.tile_columns,
            tile_chunks=head.tile_chunks,
        )
        self._library = native_library.library()
        self._next = ctypes.c_int64(0)
        self.bands: int = self._library.nwc_bands(ctypes.byref(self._struct))
        self._scratch_size = self._library.nwc_scratch_size(ctypes.byref(self._struct))

    def restore(self) -> int | None:
        """Restore what no other thread has taken yet.

        Returns:
            The number of a tile that is damaged, if one is; the matrix then stays incomplete.
        """
        bad = self._library.nwc_restore(
            native_library.level(),
            ctypes.byref(self._struct),
            ctypes.byref(self._next),
            _own_scratch(self._scratch_size),
        )
        return None if bad < 0 else bad


def _own_scratch(size: int) -> int:
    """Address of this thread's scratch."""
    found = getattr(scratch, "memory", None)
    if found is None or len(found) < size:
        found = scratch.memory = np.empty(size, dtype=np.uint8)
    return found.ctypes.data
