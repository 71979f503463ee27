"""y = W x from the compressed bytes: a tile is decoded and multiplied at once, W never written.

With Z the values of the integers, s the scales of columns and r those of rows, W = diag(r) Z
diag(s), so that

    y = r * (Z (s * x)).

Every tile sums over its own columns; the sums of the strips of tiles are added in a fixed order,
so that the result is the same in every run.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nwc.codec.gpu import DeviceMatrices, patched_weights
from nwc.coding.rans import LANES
from nwc.errors import ConfigError
from nwc.kernels import gpu
from nwc.kernels.gpu import Plan
from nwc.kernels.tile_batch import Place, batch

if TYPE_CHECKING:
    from jaxtyping import Float


class _Strips(NamedTuple):
    """Where the sums of a matrix lie: [strips, padded rows] from `start` on."""

    start: int
    strips: int
    rows: int


class _Changes(NamedTuple):
    """What patches change, sorted by row.

    Args:
        rows: [patched rows] of the products of all matrices, one after the other.
        starts: [patched rows + 1] first patch of each.
        columns: [patches] of all matrices.
        deltas: [patches] FP32.
    """

    rows: Tensor
    starts: Tensor
    columns: Tensor
    deltas: Tensor


class DeviceProduct:
    """Products of matrices with vectors; each matrix has an input of its own.

    Args:
        matrices: of an elementwise codec, on their device.

    Raises:
        ConfigError: the codec's synthesis is a network, for which there is no such short cut.
    """

    def __init__(self, matrices: DeviceMatrices) -> None:
        if not matrices.elementwise:
            raise ConfigError(
                "weights of a codec that transforms chunks jointly cannot be multiplied while "
                "they are decoded; use DeviceMatrices.weights"
            )
        self._matrices = matrices
        self._strips: list[_Strips] = []
        start = 0
        for tensor in matrices.tensors:
            head = tensor.stream.head
            strips, rows = -(-head.columns // head.tile_columns), head.chunks * LANES
            self._strips.append(_Strips(start, strips, rows))
            start += strips * rows
        # Repetitions of a tile must not add to its sums: they have a place behind everything.
        self._size = start + max(each.rows for each in self._strips)
        parts = batch(
            matrices.matrices,
            [Place(each.start, each.rows, 1) for each in self._strips],
            matrices.values,
            tiles_per_program=matrices.tiles,
            spare=start,
        )
        self._plan = Plan(parts, matrices.tiles, matrices.device)
        scales = [tensor.row_scales for tensor in matrices.tensors]
        self._row_scales = [None if s is None else s.to(matrices.device) for s in scales]

    def __call__(self, vectors: Float[Tensor, "batch columns"]) -> list[Float[Tensor, "batch m"]]:
        """The products, in FP32; nothing is waited for.

        Args:
            vectors: the inputs of all matrices, side by side.

        Raises:
            ConfigError: they do not have as many columns as the matrices.
        """
        heads = [tensor.stream.head for tensor in self._matrices.tensors]
        wanted = sum(head.columns for head in heads)
        if vectors.dim() != 2 or vectors.shape[1] != wanted:
            raise ConfigError(
                f"vectors are {list(vectors.shape)}, wanted [batch, {wanted}]: the inputs of "
                f"{len(heads)} matrices side by side"
            )
        vectors = vectors.float().contiguous()
        device = self._matrices.device
        sums = torch.empty(len(vectors), self._size, device=device)
        self._matrices.arrays.run(
            self._plan, "products", sums, out_stride=self._size, vectors=vectors
        )
        out = torch.empty(len(vectors), sum(head.rows for head in heads), device=device)
        parts = list(out.split([head.rows for head in heads], dim=1))
        for part, strips in zip(parts, self._strips, strict=True):
            mine = sums[:, strips.start : strips.start + strips.strips * strips.rows]
            torch.sum(
                mine.view(len(vectors), strips.strips, -1)[..., : part.shape[1]], 1, out=part
            )
        self._add_patches(vectors, out)
        for part, scales in zip(parts, self._row_scales, strict=True):
            if scales is not None:
                part.mul_(scales)
        return parts

    def check(self) -> None:
        """Wait for the last product, and see that every tile ended as it must.

        Raises:
            BadTileError: one did not.
        """
        self._plan.check()

    def _add_patches(self, vectors: Tensor, out: Tensor) -> None:
        changes = self._changes
        if len(changes.rows):
            add_patches = gpu.kernel("synthesis_triton", "add_patches")
            with torch.cuda.device_of(out):
                add_patches[(len(changes.rows), len(vectors))](
                    *changes, vectors, vectors.stride(0), out, out.stride(0), BLOCK=32
                )

    @cached_property
    def _changes(self) -> _Changes:
        """Decodes the integers once, for what the words hold at the places of patches."""
        rows, columns, deltas = [], [], []
        row = column = 0
        integers: list[Any] = [None] * len(self._matrices.tensors)
        if any(len(patches.values) for patches in self._matrices.patches):
            integers = self._matrices.integers()
        for tensor, patches, found in zip(
            self._matrices.tensors, self._matrices.patches, integers, strict=True
        ):
            if len(patches.values):
                at = torch.from_numpy(patches.columns * tensor.stream.head.chunks * LANES)
                at += torch.from_numpy(patches.rows)
                held = found.reshape(-1)[at.to(found.device)].cpu().numpy().astype(np.int64)
                before = patched_weights(tensor, patches, held)
                rows.append(patches.rows + row)
                columns.append(patches.columns + column)
                deltas.append(patched_weights(tensor, patches, patches.values) - before)
            row += tensor.stream.head.rows
            column += tensor.stream.head.columns
        device = self._matrices.device
        if not rows:
            return _Changes(*(torch.zeros(0, device=device),) * 4)
        every = np.concatenate(rows)
        order = np.argsort(every, kind="stable")
        distinct, starts = np.unique(every[order], return_index=True)
        # The scale of a column is part of a delta, so the kernel takes inputs as they are.
        return _Changes(
            torch.from_numpy(distinct).to(device),
            torch.from_numpy(np.append(starts, len(every))).to(device),
            torch.from_numpy(np.concatenate(columns)[order]).to(device),
            torch.cat(deltas)[torch.from_numpy(order)].to(device),
        )
