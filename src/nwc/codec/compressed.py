"""A compressed matrix: an NWC-RANS stream that also carries scales, gain and measured errors."""

from __future__ import annotations

import math
import struct
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nwc.codec import scales as scale_codes
from nwc.codec.model import WeightCodec
from nwc.coding.bitstream import Bitstream, Section, TileDecoder
from nwc.coding.tables import TableBank
from nwc.errors import BitstreamError
from nwc.kernels.backend import decode_tile

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

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
        gain = self.stream.section(Section.GAIN)
        if len(gain) != 4:
            raise BitstreamError(f"gain has {len(gain)} bytes, wanted 4")
        self.log2_gain: float = struct.unpack("<f", gain)[0]
        if not abs(self.log2_gain) < 32:
            raise BitstreamError(f"log2 gain is {self.log2_gain}, wanted one within 32 of 0")
        if self.stream.classes_count > codec.config.levels:
            raise BitstreamError(
                f"stream has {self.stream.classes_count} levels, its codec {codec.config.levels}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor as the checkpoint holds it."""
        m, n = self.stream.rows, self.stream.columns
        return (n, m) if self.stream.transposed else (m, n)

    @property
    def errors(self) -> MeasuredErrors | None:
        """What was measured when the tensor was compressed, if it was stored."""
        data = self.stream.sections.get(Section.ERRORS)
        return None if data is None else MeasuredErrors.from_bytes(data)

    def scales(self) -> Float[Tensor, " n"]:
        """Scale of every column."""
        return scale_codes.unpack(self.stream)

    def tile(self, i: int, decoder: TileDecoder = decode_tile) -> Float[Tensor, "columns rows"]:
        """Weights of tile i in FP32, a column a row, without padding; nothing else is decoded.

        Raises:
            BitstreamError: the tile is damaged or does not exist.
        """
        return self._tile(i, decoder, self.scales(), self._lookup())

    def weight(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        decoder: TileDecoder = decode_tile,
        executor: Executor | None = None,
    ) -> Float[Tensor, "..."]:
        """The tensor as the checkpoint holds it; tiles decode in the executor's threads if given.

        Raises:
            BitstreamError: the stream is damaged anywhere.
        """
        stream = self.stream
        stream.check_tensor()
        scales, lookup = self.scales(), self._lookup()
        columns = torch.empty(stream.columns, stream.rows, dtype=dtype)

        def place(i: int) -> None:
            tile = stream.tiles[i]
            start = tile.chunk * 16
            values = self._tile(i, decoder, scales, lookup)
            part = columns[tile.column : tile.column + tile.columns]
            part[:, start : start + values.shape[1]] = values

        for _ in (map if executor is None else executor.map)(place, range(len(stream.tiles))):
            pass
        return columns if stream.transposed else columns.T.contiguous()

    def _tile(
        self, i: int, decoder: TileDecoder, scales: Tensor, lookup: Tensor | None
    ) -> Float[Tensor, "columns rows"]:
        symbols = self.stream.tile(i, decoder)
        tile = self.stream.tiles[i]
        which = slice(tile.column, tile.column + tile.columns)
        chunks = self._synthesis(symbols, self.stream.classes[which], lookup)
        weights = (chunks * scales[which, None, None]).flatten(1)
        return weights[:, : min(tile.chunks * 16, self.stream.rows - tile.chunk * 16)]

    def _lookup(self) -> Tensor | None:
        # Kinds that treat every weight by itself are a table of level and 16-bit symbol; the
        # symbols of all tables and patches lie between these two.
        if self.codec.config.kind not in ("compander", "identity"):
            return None
        stream = self.stream
        patched = stream.patches[1]
        first = min(int(stream.tables.first.min()), int(patched.min(initial=0)))
        last = max(
            max(t.last for t in stream.tables.tables), int(patched.max(initial=0)), first + 15
        )
        count = -(-(last - first + 1) // 16) * 16
        symbols = torch.arange(first, first + count).float().view(-1, 16)
        levels = torch.arange(stream.classes_count)
        with torch.no_grad():
            rows = self.codec.synthesis(
                symbols.expand(len(levels), -1, 16),
                levels[:, None].expand(-1, len(symbols)),
                self.log2_gain,
            ).reshape(len(levels), -1)
        self._first = first
        return rows

    def _synthesis(
        self, symbols: NDArray[np.int16], classes: NDArray[np.uint8], lookup: Tensor | None
    ) -> Float[Tensor, "columns chunks 16"]:
        z = torch.from_numpy(symbols)
        levels = torch.from_numpy(classes.astype(np.int64))
        if lookup is not None:
            places = z.to(torch.int32) - self._first + (levels * lookup.shape[1]).int()[:, None, None]
            return lookup.reshape(-1)[places]
        flat = z.reshape(-1, 16).float()
        each = levels[:, None].expand(z.shape[:2]).reshape(-1)
        out = torch.empty_like(flat)
        with torch.no_grad():
            for start in range(0, len(flat), _BATCH_CHUNKS):
                part = slice(start, start + _BATCH_CHUNKS)
                out[part] = self.codec.synthesis(flat[part], each[part], self.log2_gain)
        return out.view(z.shape)
