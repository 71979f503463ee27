"""Interleaved rANS in Triton: the kernel beside the oracle `coding.rans`.

The 16 lanes of a tile are 16 neighbouring threads; a warp holds two tiles, a program several
warps (`TILES`). In a step every lane advances by itself, then those whose state has run low take
the next words of the tile in lane order: the place of a lane's word is the number of such lanes
before it.

Every read is masked or bounded by what the host has checked: a table index by construction of
`choice`, a slot by 12 bits, a word by the tile's number of words. A tile whose words run out, or
that does not end as it must, is reported in `ends`, and the host raises.

This module is imported by functions only: Triton is an optional dependency, and whoever reads
kernels with it compiles their source.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nwc.coding import rans
from nwc.kernels.synthesis_triton import add_products, weight
from nwc.kernels.tile_batch import Slot

LANES = tl.constexpr(rans.LANES)
LOWER = tl.constexpr(rans.LOWER)
FIELDS = tl.constexpr(len(Slot))
WORD = tl.constexpr(int(Slot.WORD))
WORDS = tl.constexpr(int(Slot.WORDS))
COLUMNS = tl.constexpr(int(Slot.COLUMNS))
CHUNKS = tl.constexpr(int(Slot.CHUNKS))
ROWS = tl.constexpr(int(Slot.ROWS))
COLUMN = tl.constexpr(int(Slot.COLUMN))
ROW = tl.constexpr(int(Slot.ROW))
CHOICE = tl.constexpr(int(Slot.CHOICE))
OUT = tl.constexpr(int(Slot.OUT))
COLUMN_STRIDE = tl.constexpr(int(Slot.COLUMN_STRIDE))
ROW_STRIDE = tl.constexpr(int(Slot.ROW_STRIDE))
ON_PARITY = tl.constexpr(int(Slot.ON_PARITY))
ON_BIT = tl.constexpr(int(Slot.ON_BIT))

# How many lanes of my tile before me want a word ($0), and how many in all ($1). A warp is two
# tiles, so one vote answers both: $2 = whether I want one, $3 and $4 as `lane_masks` has them.
_BALLOT = tl.constexpr("""{
    .reg .pred wants;
    .reg .b32 all, some;
    setp.ne.b32 wants, $2, 0;
    vote.sync.ballot.b32 all, wants, 0xffffffff;
    and.b32 some, all, $3;
    popc.b32 $0, some;
    and.b32 some, all, $4;
    popc.b32 $1, some;
}""")

_PREFETCH = tl.constexpr("prefetch.global.L1 [$1]; mov.b32 $0, 0;")


@triton.jit
def lane_masks(TILES: tl.constexpr):
    """Bits, in a warp, of the lanes of my tile before me, and of all its lanes."""
    thread = tl.arange(0, TILES * LANES)
    shift = thread % 32 // LANES * LANES
    return ((1 << thread % LANES) - 1) << shift, (0xFFFF + 0 * thread) << shift


@triton.jit
def advance(
    x,
    position,
    path,
    pair,
    packed,
    words,
    available,
    before,
    mine,
    on_parity,
    on_bit,
    TILES: tl.constexpr,
    TRELLIS: tl.constexpr,
    BALLOT: tl.constexpr,
):
    """One step of all lanes.

    Args:
        x: rANS states, uint32; this and all others but `packed` are [TILES * 16], a lane each.
        position: words read, the same in all lanes of a tile.
        path: states of the trellis.
        pair: entry of `choice`: table << 32 | start.
        packed: see `coding.rans.lookup`.
        words: address of the tile's first word.
        available: number of its words.
        before: see `lane_masks`.
        mine: see `lane_masks`.
        on_parity: of the trellis.
        on_bit: of the trellis.
        TILES: of the program.
        TRELLIS: whether there is one.
        BALLOT: count refills by a vote of the warp. Right only where a thread holds one lane.

    Returns:
        x, position, path and the place of the symbol.
    """
    slot = (x & 0xFFF).to(tl.int32)
    entry = tl.load(packed + (((pair >> 32).to(tl.int32) << 12) | slot)).to(
        tl.uint32, bitcast=True
    )
    start = pair.to(tl.int32)
    high = x >> 12
    # The field holds the frequency less one.
    x = ((entry >> 12) & 0xFFF) * high + (high + (entry & 0xFFF))
    symbol = (entry >> 24).to(tl.int32)
    if TRELLIS:
        place = start + 2 * symbol
        path = (path >> 1) ^ tl.where((place & 1) != 0, on_parity, 0)
        path = path ^ tl.where((place & 2) != 0, on_bit, 0)
    else:
        place = start + symbol
    wants = x < LOWER
    if BALLOT:
        earlier, total = tl.inline_asm_elementwise(
            _BALLOT,
            "=r,=r,r,r,r",
            [wants.to(tl.int32), before, mine],
            dtype=(tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        taken = tl.reshape(wants.to(tl.int32), [TILES, LANES])
        sums = tl.sum(taken, 1, keep_dims=True) + 0 * taken
        earlier = tl.reshape(tl.cumsum(taken, 1) - taken, [TILES * LANES])
        total = tl.reshape(sums, [TILES * LANES])
    at = position + earlier
    word = tl.load(words + at, mask=wants & (at < available), other=0)
    word = word.to(tl.uint32) & 0xFFFF
    x = tl.where(wants, (x << 16) | word, x)
    return x, position + total, path, place


@triton.jit
def entries_of(options, group, TRELLIS: tl.constexpr):
    """Entries of `choice` for parity 0 and 1 of a class; the same one twice without a trellis."""
    if TRELLIS:
        at = options + group * (2 * LANES)
        return tl.load(at), tl.load(at + 1)
    pair = tl.load(options + group * LANES)
    return pair, pair


@triton.jit
def decode_tiles(
    words,
    states,
    slots,
    column_classes,
    row_classes,
    choice,
    packed,
    values,
    column_scales,
    row_scales,
    vectors,
    vector_stride,
    out,
    out_stride,
    ends,
    TILES: tl.constexpr,
    TRELLIS: tl.constexpr,
    ROW_CLASSES: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    SINK: tl.constexpr,
    BATCH: tl.constexpr,
    BALLOT: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Decode TILES tiles a program and do with their integers what SINK says.

    Args:
        words: int16. This and the next seven are arrays of `tile_batch.TileBatch`.
        states: [slots, 16] int32.
        slots: [slots, fields] int64.
        column_classes: uint8.
        row_classes: uint8; read if ROW_CLASSES.
        choice: int64.
        packed: int32.
        values: FP32; not read for integers.
        column_scales: FP32, of all matrices; not read for integers.
        row_scales: FP32, of all matrices, padding included; read if ROW_SCALES.
        vectors: [BATCH, columns] FP32; read for products.
        vector_stride: between two of them.
        out: integers (int16), weights (any float) or sums of products (FP32).
        out_stride: between the sums of two vectors.
        ends: [slots, 16] int32, set to 1 where a lane does not end as it must, else to 0.
        TILES: of a program.
        TRELLIS: whether any stream has one.
        ROW_CLASSES: whether any stream has classes of rows.
        ROW_SCALES: whether any stream has scales of rows.
        SINK: "integers", "weights" or "products".
        BATCH: number of vectors.
        BALLOT: see `advance`.
        AHEAD: how many words ahead a tile's words are fetched into the nearest cache; 0 leaves it
            to the other warps of a full GPU to bridge the wait. NVIDIA only.
    """
    # One dimension leaves the compiler one layout to choose: a lane a thread, in this order.
    thread = tl.arange(0, TILES * LANES)
    number = tl.program_id(0).to(tl.int64) * TILES + thread // LANES
    lane = thread % LANES
    slot = slots + number * FIELDS
    first = slots + tl.program_id(0).to(tl.int64) * (TILES * FIELDS)
    columns = tl.load(first + COLUMNS).to(tl.int32)
    chunks = tl.load(first + CHUNKS).to(tl.int32)

    here = words + tl.load(slot + WORD)
    available = tl.load(slot + WORDS).to(tl.int32)
    rows = tl.load(slot + ROWS).to(tl.int32)
    column_at = tl.load(slot + COLUMN)
    row_at = tl.load(slot + ROW) + lane
    options = choice + tl.load(slot + CHOICE) + lane * (2 if TRELLIS else 1)
    row_stride = tl.load(slot + ROW_STRIDE)
    column_stride = tl.load(slot + COLUMN_STRIDE)
    on_parity = tl.load(slot + ON_PARITY).to(tl.int32)
    on_bit = tl.load(slot + ON_BIT).to(tl.int32)
    top = out + tl.load(slot + OUT) + lane * row_stride

    x = tl.load(states + number * LANES + lane).to(tl.uint32, bitcast=True)
    position = tl.zeros([TILES * LANES], tl.int32)
    path = tl.zeros([TILES * LANES], tl.int32)
    before, mine = lane_masks(TILES)
    for column in range(columns):
        level = tl.load(column_classes + column_at + column).to(tl.int32)
        scale = tl.load(column_scales + column_at + column) if SINK != "integers" else 1.0
        to = top if SINK == "products" else top + column * column_stride
        group = level
        later = group
        if ROW_CLASSES:
            # The class of a chunk is fetched two steps before it is needed, its tables one.
            group = level + tl.load(row_classes + row_at).to(tl.int32)
            then = tl.minimum(1, chunks - 1) * LANES
            later = level + tl.load(row_classes + row_at + then).to(tl.int32)
        even, odd = entries_of(options, group, TRELLIS)
        for chunk in range(chunks):
            pair = tl.where((path & 1) != 0, odd, even) if TRELLIS else even
            if ROW_CLASSES:
                even, odd = entries_of(options, later, TRELLIS)
                then = tl.minimum(chunk + 2, chunks - 1) * LANES
                later = level + tl.load(row_classes + row_at + then).to(tl.int32)
            if AHEAD:
                near = tl.minimum(position + AHEAD, tl.maximum(available, 1) - 1)
                tl.inline_asm_elementwise(
                    _PREFETCH,
                    "=r,l",
                    [(here + near).to(tl.int64)],
                    dtype=tl.int32,
                    is_pure=False,
                    pack=1,
                )
            x, position, path, place = advance(
                x,
                position,
                path,
                pair,
                packed,
                here,
                available,
                before,
                mine,
                on_parity,
                on_bit,
                TILES,
                TRELLIS,
                BALLOT,
            )
            row = chunk * LANES
            keep = (row + lane) < rows
            if SINK == "integers":
                tl.store(to, place.to(tl.int16), mask=keep)
            elif SINK == "weights":
                found = weight(place, values, scale, row_scales + row_at, row, keep, ROW_SCALES)
                tl.store(to, found.to(out.dtype.element_ty), mask=keep)
            else:
                found = weight(place, values, scale, row_scales + row_at, row, keep, False)
                add_products(
                    found,
                    to,
                    out_stride,
                    vectors + column_at + column,
                    vector_stride,
                    column == 0,
                    keep,
                    BATCH,
                )
            to += row_stride * LANES
    # All lanes report: one result a tile would ask for a layout of its own, and the compiler
    # might take that one for the whole kernel.
    bad = (x != LOWER) | (position != available)
    tl.store(ends + number * LANES + lane, bad.to(tl.int32))
