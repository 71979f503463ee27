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
        place: of the values, a lane each like all tensors here.
        values: address of all value tables.
        column_scale:.
        row_scales: address of the scales of the first chunk's rows.
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
        found: weights without the scales of rows.
        to: address of the sums. Only this thread touches them.
        stride: between the sums of two vectors.
        vectors: address of the column's input in the first vector.
        vector_stride: between two vectors.
        fresh: whether this is the tile's first column: nothing is there yet.
        keep: which rows are no padding.
        BATCH: number of vectors.
    """
    for i in tl.static_range(BATCH):
        at = to + tl.full([], i, tl.int64) * stride
        before = tl.load(at, mask=keep & (fresh == 0), other=0.0)
        tl.store(at, before + found * tl.load(vectors + i * vector_stride), mask=keep)


@triton.jit
def add_patches(
    rows, starts, columns, deltas, vectors, vector_stride, out, out_stride, BLOCK: tl.constexpr
):
    """Add what patches change to a product: one program a row and vector, in a fixed order.

    Args:
        rows: [patched rows] where each lies in the product.
        starts: [patched rows + 1] first patch of each.
        columns: [patches] where the input of each lies.
        deltas: [patches] FP32, by how much the weight differs from what the words say.
        vectors: [batch, columns] FP32.
        vector_stride: between two of them.
        out: [batch, rows] FP32.
        out_stride: between two products.
        BLOCK: patches taken at once.
    """
    start = tl.load(starts + tl.program_id(0))
    stop = tl.load(starts + tl.program_id(0) + 1)
    vector = vectors + tl.program_id(1).to(tl.int64) * vector_stride
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(start, stop, BLOCK):
        i = first + tl.arange(0, BLOCK)
        inside = i < stop
        column = tl.load(columns + i, mask=inside, other=0)
        delta = tl.load(deltas + i, mask=inside, other=0.0)
        total += delta * tl.load(vector + column, mask=inside, other=0.0)
    at = out + tl.program_id(1).to(tl.int64) * out_stride + tl.load(rows + tl.program_id(0))
    tl.store(at, tl.load(at) + tl.sum(total, 0))
