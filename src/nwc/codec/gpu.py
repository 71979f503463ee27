"""Compressed matrices on a GPU: to weights, or multiplied without ever being written out.

All matrices of one object are decoded by one launch for each kind of stream. Codecs that treat
weights one by one are a table of values there (`kernels.synthesis_triton`). The networks of the
others run in torch on the decoded integers: at 2.1 MFLOP for a chunk of 16 weights the matrix
products decide, and those are the library's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import crc32c
import numpy as np
import torch
from torch import Tensor

from nwc.codec.compressed import CompressedTensor
from nwc.codec.model import WeightCodec
from nwc.coding.rans import LANES
from nwc.errors import BitstreamError, ConfigError
from nwc.kernels import gpu
from nwc.kernels.gpu import BadMatrixError, DeviceBatch, Plan
from nwc.kernels.tile_batch import ALIGNMENT, Coded, Place, Values, batch
from nwc.numerics.chunking import CHUNK

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

_BATCH_CHUNKS = 2**17
"""Chunks that a network transforms at once: 256 MB for each hidden layer of width 512."""

_BATCH_WEIGHTS = 2**30
"""Weights that `decode` restores at once: the memory it needs beside its results."""


class Patches(NamedTuple):
    """Places that the words of a stream do not hold, padding rows left out.

    Args:
        columns: [patches].
        rows: [patches].
        values: [patches] integers.
    """

    columns: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.int64]


class DeviceMatrices:
    """Compressed matrices in the memory of a device, decoded together as often as asked.

    Args:
        tensors: of codecs of one sort: that treat weights one by one, or that do not.
        device: a GPU; the CPU only under Triton's interpreter.
        check: verify the checksums of streams and tiles first.
        stored: write weights in the order of the checkpoint instead of in that of the stream,
            which stores whole chunks and is faster; see `weights`.

    Raises:
        BadMatrixError: a stream is damaged.
        ConfigError: the codecs are of two sorts.
    """

    def __init__(
        self,
        tensors: Sequence[CompressedTensor],
        device: str | torch.device,
        *,
        check: bool = True,
        stored: bool = False,
    ) -> None:
        self.tensors = list(tensors)
        self.device = torch.device(device)
        sorts = {tensor.codec.config.elementwise for tensor in self.tensors}
        if len(sorts) != 1:
            raise ConfigError(
                f"{len(self.tensors)} matrices of {len(sorts)} sorts of codecs, wanted one sort; "
                "use decode() for a mixture"
            )
        self.elementwise = sorts.pop()
        if check:
            for i, tensor in enumerate(self.tensors):
                try:
                    _check(tensor)
                except BitstreamError as error:
                    raise BadMatrixError(i, str(error)) from error
        self.matrices = [Coded.of(tensor.stream) for tensor in self.tensors]
        self.tiles = gpu.tiles_per_program(sum(len(m.tiles) for m in self.matrices))
        padded = not self.elementwise
        self._places, self._size = _places(self.tensors, stored and self.elementwise, padded)
        self.values = [_values(tensor) for tensor in self.tensors] if self.elementwise else None
        parts = batch(
            self.matrices, self._places, self.values, tiles_per_program=self.tiles, padding=padded
        )
        by_row = any(tensor.row_scales is not None for tensor in self.tensors)
        self.arrays = DeviceBatch(
            parts,
            self.device,
            torch.cat([tensor.scales for tensor in self.tensors]),
            torch.cat([_row_scales(tensor) for tensor in self.tensors]) if by_row else None,
        )
        self._plan = Plan(parts, self.tiles, self.device)
        self.patches = [_patches(tensor) for tensor in self.tensors]

    @property
    def bytes(self) -> int:
        """Memory that the matrices take, compressed."""
        return self.arrays.bytes

    def integers(self) -> list[Tensor]:
        """What the words hold, before patches: int16 [columns, chunks, 16] of every matrix.

        Raises:
            BadTileError: a tile does not end as it must.
        """
        arrays, plan, size = self.arrays, self._plan, self._size
        if self.elementwise:
            places, size = _places(self.tensors, stored=False, padded=True)
            parts = batch(self.matrices, places, tiles_per_program=self.tiles, padding=True)
            arrays, plan = DeviceBatch(parts, self.device), Plan(parts, self.tiles, self.device)
        out = torch.empty(size, dtype=torch.int16, device=self.device)
        arrays.run(plan, "integers", out)
        plan.check()
        heads = [tensor.stream.head for tensor in self.tensors]
        parts_of = out.split([head.columns * head.chunks * LANES for head in heads])
        return [
            part.view(head.columns, head.chunks, LANES)
            for part, head in zip(parts_of, heads, strict=True)
        ]

    def buffer(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Memory for the weights of all matrices."""
        return torch.empty(self._size, dtype=dtype, device=self.device)

    def decode_into(self, out: Tensor) -> None:
        """Weights of an elementwise codec into a `buffer`, patches too; nothing is waited for."""
        self.arrays.run(self._plan, "weights", out)
        for places, weights in self._patched:
            out[places] = weights.to(out.dtype)

    def check(self) -> None:
        """Wait for `decode_into`, and see that every tile ended as it must.

        Raises:
            BadTileError: one did not.
        """
        self._plan.check()

    def weights(self, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """The tensors as the checkpoint holds them.

        They are views of one buffer. Those whose stream holds the transpose are not contiguous,
        unless the object was made with `stored`.

        Raises:
            BadTileError: a tile does not end as it must.
        """
        if not self.elementwise:
            return [self._network(i, z, dtype) for i, z in enumerate(self.integers())]
        out = self.buffer(dtype)
        self.decode_into(out)
        self.check()
        return self.views(out)

    def views(self, out: Tensor) -> list[Tensor]:
        """The tensors as the checkpoint holds them, in a `buffer`."""
        return [self._view(out, i) for i in range(len(self.tensors))]

    def _view(self, out: Tensor, i: int) -> Tensor:
        head, place = self.tensors[i].stream.head, self._places[i]
        strides = place.column_stride, place.row_stride
        shape = head.columns, head.rows
        if not head.transposed:
            shape, strides = shape[::-1], strides[::-1]
        return out.as_strided(shape, strides, place.start)

    @cached_property
    def _patched(self) -> list[tuple[Tensor, Tensor]]:
        """Of every matrix that has any, where patched weights go and what they are."""
        found = []
        for tensor, place, patches in zip(self.tensors, self._places, self.patches, strict=True):
            if not len(patches.values):
                continue
            weights = patched_weights(tensor, patches, patches.values)
            if tensor.row_scales is not None:
                weights = weights * tensor.row_scales[patches.rows]
            at = patches.columns * place.column_stride + patches.rows * place.row_stride
            places = torch.from_numpy(place.start + at)
            found.append((places.to(self.device), weights.to(self.device)))
        return found

    def _network(self, i: int, integers: Tensor, dtype: torch.dtype) -> Tensor:
        tensor, head, patches = self.tensors[i], self.tensors[i].stream.head, self.patches[i]
        at = torch.from_numpy(patches.columns * head.chunks * LANES + patches.rows)
        values = torch.from_numpy(patches.values).to(self.device, torch.int16)
        integers.view(-1)[at.to(self.device)] = values
        classes = torch.from_numpy(tensor.stream.classes.columns.astype(np.int64))
        levels = classes.to(self.device)[:, None].expand(integers.shape[:2]).reshape(-1)
        flat = integers.reshape(-1, CHUNK)
        chunks = torch.empty(flat.shape, device=self.device)
        with torch.no_grad():
            for start in range(0, len(flat), _BATCH_CHUNKS):
                part = slice(start, start + _BATCH_CHUNKS)
                chunks[part] = self._codecs[i].synthesis(
                    flat[part].float(), levels[part], tensor.log2_gain
                )
        columns = chunks.view(head.columns, -1)[:, : head.rows]
        columns = (columns * tensor.scales.to(self.device)[:, None]).to(dtype)
        return columns if head.transposed else columns.T

    @cached_property
    def _codecs(self) -> list[WeightCodec]:
        """The codec of every matrix on the device, each distinct one once."""
        distinct = {id(t.codec): t.codec for t in self.tensors}
        moved = {key: copy.deepcopy(codec).to(self.device) for key, codec in distinct.items()}
        return [moved[id(tensor.codec)] for tensor in self.tensors]


def decode(
    tensors: Sequence[CompressedTensor],
    device: str | torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Tensor]:
    """The tensors as their checkpoint holds them, contiguous, in order.

    Args:
        tensors: of any codecs.
        device: a GPU; the CPU only under Triton's interpreter.
        dtype: of the results.

    Raises:
        BadMatrixError: a stream is damaged; `matrix` is the number of the tensor.
    """
    start = 0
    while start < len(tensors):
        stop, weights, sort = start, 0, tensors[start].codec.config.elementwise
        while stop < len(tensors) and tensors[stop].codec.config.elementwise == sort:
            weights += int(np.prod(tensors[stop].shape))
            if stop > start and weights > _BATCH_WEIGHTS:
                break
            stop += 1
        try:
            found = DeviceMatrices(tensors[start:stop], device).weights(dtype)
        except BadMatrixError as error:
            error.matrix += start
            raise
        for weight in found:
            # A copy of its own: views would keep the whole buffer for the sake of one of them.
            yield weight.clone(memory_format=torch.contiguous_format)
        start = stop


def _check(tensor: CompressedTensor) -> None:
    stream = tensor.stream
    stream.container.check_hash()
    for i, tile in enumerate(stream.tiles):
        if crc32c.crc32c(stream.words(tile)) != tile.checksum:
            raise BitstreamError(f"tile {i}: checksum of its {tile.words} words does not match")


def _places(
    tensors: Sequence[CompressedTensor], stored: bool, padded: bool
) -> tuple[list[Place], int]:
    """Where matrices lie in one buffer, one after the other, and its size.

    Args:
        tensors: the matrices.
        stored: in the order of the checkpoint, else a column after the other.
        padded: columns with their padding.
    """
    found, start = [], 0
    for tensor in tensors:
        head = tensor.stream.head
        rows = head.chunks * LANES if padded else head.rows
        turned = stored and not head.transposed
        found.append(Place(start, 1, head.columns) if turned else Place(start, rows, 1))
        start += head.columns * rows
    return found, start


def _values(tensor: CompressedTensor) -> Values:
    """The synthesis of every integer that a stream's tables hold."""
    first, last = tensor.reach
    first = first // ALIGNMENT * ALIGNMENT
    return Values(first, tensor.values(first, last).numpy())


def _row_scales(tensor: CompressedTensor) -> Float[Tensor, " rows"]:
    """Scales of rows, padding included, 1 if there are none."""
    head = tensor.stream.head
    scales = torch.ones(head.chunks * LANES)
    if tensor.row_scales is not None:
        scales[: head.rows] = tensor.row_scales
    return scales


def _patches(tensor: CompressedTensor) -> Patches:
    head = tensor.stream.head
    places, values = tensor.stream.patches
    columns, rows = np.divmod(places, head.chunks * LANES)
    inside = rows < head.rows
    return Patches(columns[inside], rows[inside], values[inside])


def patched_weights(
    tensor: CompressedTensor, patches: Patches, integers: NDArray[np.int64]
) -> Float[Tensor, " patches"]:
    """Weights of given integers at the places of patches, without the scales of rows."""
    stream = tensor.stream
    rows = stream.classes.rows.reshape(-1)[patches.rows]
    levels = torch.from_numpy((stream.classes.columns[patches.columns] + rows).astype(np.int64))
    spacing = 1 if stream.tables.trellis is None else 2
    latents = torch.from_numpy(integers).float()[:, None] / spacing
    with torch.no_grad():
        found = tensor.codec.synthesis(latents.expand(-1, CHUNK), levels, tensor.log2_gain)
    return found[:, 0] * tensor.scales[patches.columns]
