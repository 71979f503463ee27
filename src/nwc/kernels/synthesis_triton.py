"""What becomes of decoded integers: weights, or sums of products, without leaving the registers.

A codec that treats weights one by one is a table: the weight is the value of (class, integer)
times the scale of the column times that of the row. `rans_triton.decode_tiles` calls these for the
16 weights of a chunk in each of its tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weight(place, values, column_scale, row_scales, row, keep, ROW_SCALES: tl.constexpr):
    """Weights in FP32, in the order of multiplications of `CompressedTensor.tile`.

    Args:
        place: of the values [TILES, 16].
        values: address of all value tables.
        column_scale: [TILES, 1].
        row_scales: address of the scales of the first chunk's rows [TILES, 16].
        row: of the first lane in the tile.
        keep: which rows are no padding.
        ROW_SCALES: whether rows have scales.
    """
    found = tl.load(values + place) * column_scale
    if ROW_SCALES:
        found = found * tl.load(row_scales + row, mask=keep, other=0.0)
    return found


@triton.jit
def add_products(found, to, stride, vectors, vector_stride, fresh, keep, BATCH: tl.constexpr):
    """Add weight times input to the sums of a tile's rows, for every vector.

    Args:
        found: weights without the scales of rows [TILES, 16].
        to: address of the sums [TILES, 16]. Only this thread touches them.
        stride: between the sums of two vectors.
        vectors: address of the column's input in the first vector [TILES, 1].
        vector_stride: between two vectors.
        fresh: whether this is the tile's first column: nothing is there yet.
        keep: which rows are no padding.
        BATCH: number of vectors.
    """
    for i in tl.static_range(BATCH):
        at = to + i * stride
        before = tl.load(at, mask=keep & (fresh == 0), other=0.0)
        tl.store(at, before + found * tl.load(vectors + i * vector_stride), mask=keep)
