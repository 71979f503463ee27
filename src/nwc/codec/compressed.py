"""A compressed matrix: an NWC-RANS stream that also carries scales, gain and measured errors."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from concurrent.futures import Executor
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nwc.codec import scales as scale_codes
from nwc.codec.model import WeightCodec
from nwc.coding.bitstream import Bitstream
from nwc.coding.container import Section
from nwc.coding.tables import TableBank
from nwc.coding.tiling import Classes, TileDecoder
from nwc.errors import BitstreamError
from nwc.kernels import rans_native
from nwc.kernels.backend import backend, decode_tile
from nwc.kernels.matrix_native import NativeMatrix
from nwc.kernels.synthesis_native import Output, Synthesis, Values
from nwc.numerics.chunking import CHUNK

if TYPE_CHECKING:
    from jaxtyping import Float, Int16

_BATCH_CHUNKS = 2048
"""Chunks that a network transforms at once. Part of what makes decoding reproducible: a matrix
product may round differently at another batch size, so every way of reading a tile uses this."""


class MeasuredErrors(NamedTuple):
    """What compression did to the matrix, measured when it was made.

    Args:
        relative: |W - W_hat|_F / |W|_F.
        hessian: tr(E H E^T) / tr(W H W^T); NaN without calibration.
        damping: share of mean(diag H) added before factoring H; NaN without calibration.
    """

    relative: float
    hessian: float = math.nan
    damping: float = math.nan

    def to_bytes(self) -> bytes:
        """Three FP32."""
        return struct.pack("<3f", *self)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> MeasuredErrors:
        """Inverse of `to_bytes`."""
        if len(data) != 12:
            raise BitstreamError(f"errors have {len(data)} bytes, wanted 12")
        return cls(*struct.unpack("<3f", data))


_CORES = os.cpu_count() or 1
"""Threads that may share one matrix."""

_FUSED = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Decoding(NamedTuple):
    """The decoding of a tensor, cut into parts.

    Args:
        parts: their number.
        part: does the part of a number; in any order, in any thread.
        result: the tensor, when all parts are done.
    """

    parts: int
    part: Callable[[int], None]
    result: Callable[[], Tensor]


class CompressedTensor:
    """Reader of one compressed matrix.

    Args:
        data: the stream.
        codec: whose synthesis transform restores the weights.
        bank: tables shared by the file.

    Raises:
        BitstreamError: the stream is damaged, or was made for another codec.
    """

    def __init__(
        self, data: bytes | memoryview, codec: WeightCodec, bank: TableBank | None = None
    ) -> None:
        self.stream = Bitstream(data, bank)
        self.codec = codec
        gain = self.stream.container.section(Section.GAIN)
        if len(gain) != 4:
            raise BitstreamError(f"gain has {len(gain)} bytes, wanted 4")
        self.log2_gain: float = struct.unpack("<f", gain)[0]
        if not abs(self.log2_gain) < 32:
            raise BitstreamError(f"log2 gain is {self.log2_gain}, wanted one within 32 of 0")
        levels = self.stream.head.classes
        if levels > codec.config.levels:
            raise BitstreamError(f"stream has {levels} levels, its codec {codec.config.levels}")
        by_row = (
            self.stream.classes.rows.any() or Section.ROW_SCALES in self.stream.container.sections
        )
        if not codec.config.elementwise and (by_row or self.stream.head.trellis):
            raise BitstreamError(
                f"stream has row classes or a trellis, which no {codec.config.kind} codec reads"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor as the checkpoint holds it."""
        m, n = self.stream.head.rows, self.stream.head.columns
        return (n, m) if self.stream.head.transposed else (m, n)

    @property
    def errors(self) -> MeasuredErrors | None:
        """What was measured when the tensor was compressed, if it was stored."""
        data = self.stream.container.sections.get(Section.ERRORS)
        return None if data is None else MeasuredErrors.from_bytes(data)

    @cached_property
    def scales(self) -> Float[Tensor, " n"]:
        """Scale of every column."""
        return scale_codes.unpack(self.stream.container)

    @cached_property
    def row_scales(self) -> Float[Tensor, " m"] | None:
        """Scale of every row beside that of its column, if there are any."""
        return scale_codes.unpack_rows(self.stream.container)

    def tile(self, i: int, decoder: TileDecoder = decode_tile) -> Float[Tensor, "columns rows"]:
        """Weights of tile i in FP32, a column a row, without padding; nothing else is decoded.

        Raises:
            BitstreamError: the tile is damaged or does not exist.
        """
        integers = torch.from_numpy(self.stream.tile(i, decoder))
        tile = self.stream.tiles[i]
        columns = self.scales[tile.column : tile.column + tile.columns, None]
        start = tile.chunk * CHUNK
        stop = min(start + tile.chunks * CHUNK, self.stream.head.rows)
        chunks = self._synthesis(integers, self.stream.classes_of(tile))
        weights = chunks.flatten(1)[:, : stop - start] * columns
        return weights if self.row_scales is None else weights * self.row_scales[start:stop]

    def weight(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        decoder: TileDecoder | None = None,
        executor: Executor | None = None,
        out: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "..."]:
        """The tensor as the checkpoint holds it.

        Args:
            dtype: of a new tensor.
            decoder: kernel.
            executor: its threads decode tiles, if given.
            out: of the same shape, on the CPU; takes the weights instead of a new tensor.

        Without a kernel it is the fastest that there is. Whichever it is, the bits are the same.

        Raises:
            BitstreamError: the stream is damaged anywhere.
        """
        place = out if out is None or out.is_contiguous() else None
        job = self.decoding(dtype if out is None else out.dtype, decoder, place)
        for _ in (map if executor is None else executor.map)(job.part, range(job.parts)):
            pass
        found = job.result()
        return found if out is None or out is place else out.copy_(found)

    def decoding(
        self,
        dtype: torch.dtype = torch.float32,
        decoder: TileDecoder | None = None,
        out: Tensor | None = None,
    ) -> Decoding:
        """The work of `weight`, in parts that any thread may do.

        Args:
            dtype: of the weights.
            decoder: see `weight`.
            out: where to put them, contiguous, of this tensor's shape and dtype; None: anew.

        Raises:
            BitstreamError: the checksum of the stream does not match.
        """
        self.stream.container.check_hash()
        elementwise = self.codec.config.elementwise
        if decoder is None and elementwise and dtype in _FUSED and backend() == "native":
            return self._fused(torch.empty(self.shape, dtype=dtype) if out is None else out)
        head = self.stream.head
        with torch.inference_mode(mode=False):  # parts may be done by threads outside of it
            columns = torch.empty(head.columns, head.rows, dtype=dtype)

        def part(i: int) -> None:
            tile = self.stream.tiles[i]
            start = tile.chunk * CHUNK
            values = self.tile(i, decoder or decode_tile)
            place = columns[tile.column : tile.column + tile.columns]
            place[:, start : start + values.shape[1]] = values

        def result() -> Tensor:
            weight = columns if head.transposed else columns.T.contiguous()
            return weight if out is None else out.copy_(weight)

        return Decoding(len(self.stream.tiles), part, result)

    def _fused(self, out: Tensor) -> Decoding:
        """Decoding and synthesis in C, into place; every part does what is left."""
        first, values = self._lookup
        rows = torch.ones(self.stream.head.rows) if self.row_scales is None else self.row_scales
        synthesis = Synthesis(
            Values(
                first=first,
                values=values.contiguous().numpy(),
                column_scales=self.scales.contiguous().numpy(),
                row_scales=rows.contiguous().numpy(),
            ),
            Output(
                address=out.data_ptr(),
                count=out.numel(),
                dtype=_FUSED[out.dtype],
                stride=self.shape[1],
                by_column=self.stream.head.transposed,
            ),
        )
        matrix = NativeMatrix(self.stream, synthesis, owner=out)

        def part(_: int) -> None:
            bad = matrix.restore()
            if bad is not None:
                self.stream.tile(bad, rans_native.decode_tile)  # raises what is wrong with it
                raise BitstreamError(f"tile {bad} changed while it was decoded")

        return Decoding(min(matrix.bands, _CORES), part, lambda: out)

    def _synthesis(
        self, integers: Int16[Tensor, "columns chunks 16"], classes: Classes
    ) -> Float[Tensor, "columns chunks 16"]:
        if self.codec.config.elementwise:
            first, values = self._lookup
            # A class for all rows is one addition a column instead of one a weight.
            level = classes.full() if classes.rows.any() else classes.columns[:, None, None]
            offset = torch.from_numpy(level.astype(np.int32) * values.shape[1] - first)
            return values.view(-1)[integers.int() + offset]
        flat = integers.reshape(-1, CHUNK).float()
        levels = torch.from_numpy(classes.columns.astype(np.int64))
        each = levels[:, None].expand(integers.shape[:2]).reshape(-1)
        out = torch.empty_like(flat)
        with torch.no_grad():
            for start in range(0, len(flat), _BATCH_CHUNKS):
                part = slice(start, start + _BATCH_CHUNKS)
                out[part] = self.codec.synthesis(flat[part], each[part], self.log2_gain)
        return out.view(integers.shape)

    @property
    def reach(self) -> tuple[int, int]:
        """The smallest and the largest integer that the tables hold."""
        # A trellis has twice as many integers as symbols, half a step apart.
        spacing = 1 if self.stream.tables.trellis is None else 2
        tables = self.stream.tables.tables
        return (
            spacing * min(table.first for table in tables),
            spacing * (max(table.last for table in tables) + 1),
        )

    def values(self, first: int, last: int) -> Float[Tensor, "levels integers"]:
        """The synthesis of first, first + 1, ... for every level; whole chunks, past the last.

        For codecs that treat weights one by one.
        """
        spacing = 1 if self.stream.tables.trellis is None else 2
        count = -(-(last - first + 1) // CHUNK) * CHUNK
        latents = torch.arange(first, first + count).float().view(-1, CHUNK) / spacing
        levels = torch.arange(self.stream.head.classes)
        with torch.no_grad():
            values = self.codec.synthesis(
                latents.expand(len(levels), -1, CHUNK),
                levels[:, None].expand(-1, len(latents)),
                self.log2_gain,
            )
        return values.reshape(len(levels), -1)

    @cached_property
    def _lookup(self) -> tuple[int, Float[Tensor, "levels integers"]]:
        """The smallest integer that occurs, or 0, and the values from it on, patches included."""
        (first, last), patched = self.reach, self.stream.patches[1]
        first = min(first, int(patched.min(initial=0)))
        return first, self.values(first, max(last, int(patched.max(initial=0))))
