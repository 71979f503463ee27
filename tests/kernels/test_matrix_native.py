"""Whole matrices in C: the integers that were coded under torch's products, bit for bit."""

import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding import tiling
from nwc.coding.bitstream import Bitstream, Index, encode
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, Profile
from nwc.coding.trellis import TRELLISES
from nwc.kernels import native_library, rans_numba
from nwc.kernels.synthesis_native import DTYPES, Output, Synthesis, Values

if not native_library.available():
    pytest.skip(native_library.load().reason, allow_module_level=True)

from nwc.kernels.matrix_native import NativeMatrix

every_level = pytest.mark.parametrize("level", native_library.levels())
GUARD = 64
LIMIT = 40


def random_stream(rng, rows, columns, *, states=0, class_count=1, by_row=False, profile=None):
    """A stream of random integers, some of them patches, under random classes and tables."""
    trellis = TRELLISES.get(states)
    chunks = -(-rows // 16)
    most = class_count - 1
    of_rows = int(rng.integers(0, most + 1)) if by_row else 0
    classes = Classes(
        rng.integers(0, most - of_rows + 1, columns).astype(np.uint8),
        rng.integers(0, of_rows + 1, (chunks, 16)).astype(np.uint8),
    )
    width = 1 if trellis is None else 2
    tables = [[random_table(rng) for _ in range(16 * width)] for _ in range(class_count)]
    if trellis is None:
        integers = np.rint(rng.normal(0, 4, (columns, chunks, 16))).astype(np.int16)
        integers.reshape(-1)[:: int(rng.integers(50, 300))] = LIMIT - 1  # in no table
    else:
        integers = random_paths(rng, trellis, columns, chunks, profile)
    data = encode(
        integers,
        classes,
        tables,
        rows=rows,
        trellis=trellis,
        profile=profile or tiling.PROFILES["balanced"],
        tile_encoder=rans_numba.encode_tile,
    )
    return integers, Bitstream(data)


def random_table(rng):
    frequencies = rng.integers(1, 200, int(rng.integers(10, 20)))
    frequencies = np.maximum(1, frequencies * 4096 // frequencies.sum())
    frequencies[3] += 4096 - frequencies.sum()
    return FrequencyTable(-int(rng.integers(4, 8)), frequencies)


def random_paths(rng, trellis, columns, chunks, profile):
    """Integers of a trellis that begins anew in every tile, a few of them in no table."""
    profile = profile or tiling.PROFILES["balanced"]
    high, wide = tiling.tile_shape(chunks, columns, profile)
    symbols = np.rint(rng.normal(0, 2, (columns, chunks, 16))).astype(np.int64)
    symbols.reshape(-1)[:: int(rng.integers(50, 300))] = LIMIT // 2 - 1
    integers = np.empty_like(symbols)
    for column, chunk in tiling.tile_origins(chunks, columns, high, wide):
        path = np.zeros(16, dtype=np.int64)
        for c in range(column, min(column + wide, columns)):
            for k in range(chunk, min(chunk + high, chunks)):
                parity, symbol = path & 1, symbols[c, k]
                integers[c, k] = 2 * symbol + parity
                path = path >> 1 ^ parity * trellis.on_parity ^ (symbol & 1) * trellis.on_bit
    return integers.astype(np.int16)


def random_values(rng, stream, *, linear=False):
    head = stream.head
    count = 2 * LIMIT
    values = rng.normal(size=(head.classes, count)).astype(np.float32)
    if linear:
        values = np.arange(-LIMIT, LIMIT, dtype=np.float32) * np.abs(values[:, :1])
    return Values(
        first=-LIMIT,
        values=np.ascontiguousarray(values),
        column_scales=np.exp(rng.normal(size=head.columns)).astype(np.float32),
        row_scales=np.exp(rng.normal(size=head.rows)).astype(np.float32),
    )


def in_torch(integers, stream, values, dtype):
    """[columns, rows], as `codec.compressed` has it."""
    count = values.values.shape[1]
    places = stream.classes.full().astype(np.int64) * count + integers - values.first
    found = torch.from_numpy(values.values).view(-1)[torch.from_numpy(places)].flatten(1)
    found = found[:, : stream.head.rows] * torch.from_numpy(values.column_scales)[:, None]
    return (found * torch.from_numpy(values.row_scales)).to(getattr(torch, dtype))


def in_c(level, stream, values, dtype, by_column, *, threads=1, offset=0):
    """The same by the kernel, in the middle of guarded memory; [columns, rows], and its word."""
    shape = stream.head.columns, stream.head.rows
    size, start = shape[0] * shape[1], GUARD + offset
    whole = torch.full((size + 2 * GUARD + offset,), 7.0, dtype=getattr(torch, dtype))
    output = Output(
        address=whole.data_ptr() + start * whole.element_size(),
        count=size,
        dtype=dtype,
        stride=shape[1] if by_column else shape[0],
        by_column=by_column,
    )
    with mock.patch.dict(os.environ, NWC_NATIVE_LEVEL=level):
        matrix = NativeMatrix(stream, Synthesis(values, output))
        with ThreadPoolExecutor(threads) as pool:
            bad = list(pool.map(lambda _: matrix.restore(), range(threads)))
    assert (whole[:start] == 7).all()
    assert (whole[start + size :] == 7).all()
    found = whole[start : start + size]
    return found.view(shape) if by_column else found.view(shape[1], shape[0]).T, bad


SMALL = Profile(rows=64, weights=512)
WIDE = Profile(rows=4096, weights=2**18)


@every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_equals_torch(level, dtype, states, by_row, by_column):
    rng = np.random.default_rng([states, by_row, by_column])
    integers, stream = random_stream(
        rng, 150, 75, states=states, class_count=5, by_row=by_row, profile=SMALL
    )
    assert len(stream.patches[0])
    assert len(stream.tiles) == 30
    for linear in (False, True):
        values = random_values(rng, stream, linear=linear)
        expected = in_torch(integers, stream, values, dtype)
        for offset in (0, 3):
            found, bad = in_c(level, stream, values, dtype, by_column, offset=offset)
            assert bad == [None]
            assert torch.equal(found, expected)


@every_level
@pytest.mark.parametrize("states", [0, 32])
@pytest.mark.parametrize(("rows", "columns"), [(1024, 280), (1001, 523), (50, 2000)])
def test_tiles_larger_than_the_cache(level, states, rows, columns):
    """Tiles that decode some columns at a time; the last one narrower, or shorter than those."""
    rng = np.random.default_rng([rows, states])
    integers, stream = random_stream(rng, rows, columns, states=states, profile=WIDE)
    values = random_values(rng, stream)
    for by_column in (False, True):
        found, bad = in_c(level, stream, values, "bfloat16", by_column)
        assert bad == [None]
        assert torch.equal(found, in_torch(integers, stream, values, "bfloat16"))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 90),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from([0, 4, 8]),
    st.sampled_from(native_library.levels()),
)
def test_equals_torch_on_any_matrix(seed, rows, columns, dtype, by_column, states, level):
    rng = np.random.default_rng(seed)
    profile = Profile(16 * int(rng.integers(1, 8)), int(rng.integers(1, 2000)))
    integers, stream = random_stream(
        rng,
        rows,
        columns,
        states=states,
        class_count=int(rng.integers(1, 6)),
        by_row=bool(rng.integers(2)),
        profile=profile,
    )
    values = random_values(rng, stream)
    threads, offset = int(rng.integers(1, 4)), int(rng.integers(0, 40))
    found, bad = in_c(level, stream, values, dtype, by_column, threads=threads, offset=offset)
    assert bad == [None] * threads
    assert torch.equal(found, in_torch(integers, stream, values, dtype))


def damaged(stream, tile, word, *, hidden):
    """The stream with a word of a tile changed; `hidden`: with the checksum that fits it."""
    payload = stream.container.payload.copy()
    place = stream.tiles[tile]
    payload[place.word + word] ^= 1
    found = Bitstream(stream.container.view)
    found.container = found.container._replace(payload=payload)
    if hidden:
        entries = found.index.entries.copy()
        words = payload[place.word : place.word + place.words]
        entries[tile, 1] = crc32c.crc32c(words)
        found.index = Index(entries, found.index.starts)
    return found


@every_level
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_tile_is_named(level, hidden, threads):
    rng = np.random.default_rng(7)
    _, whole = random_stream(rng, 150, 75, profile=SMALL)
    values = random_values(rng, whole)
    for tile in (0, 13, 14, len(whole.tiles) - 1):
        for word in (0, whole.tiles[tile].words - 1):
            stream = damaged(whole, tile, word, hidden=hidden)
            found, bad = in_c(level, stream, values, "float32", False, threads=threads)
            assert sorted(bad, key=str) == [tile] + [None] * (threads - 1)
            assert found.isfinite().all()


@every_level
@pytest.mark.parametrize("change", ["too few", "too many", "state"])
def test_an_index_that_does_not_fit_its_words(level, change):
    rng = np.random.default_rng(8)
    _, whole = random_stream(rng, 150, 75, profile=SMALL)
    entries, tile = whole.index.entries.copy(), 11
    start = int(whole.index.starts[tile])
    if change == "state":
        entries[tile, 5] ^= 1
    else:
        entries[tile, 0] = whole.tiles[tile].words + (1 if change == "too many" else -1)
        words = whole.container.payload[start : start + int(entries[tile, 0])]
        entries[tile, 1] = crc32c.crc32c(words)
    whole.index = Index(entries, whole.index.starts)
    _, bad = in_c(level, whole, random_values(rng, whole), "float32", True)
    assert bad == [tile]


def test_every_band_is_taken_once():
    rng = np.random.default_rng(9)
    integers, stream = random_stream(rng, 300, 200, profile=SMALL)
    values = random_values(rng, stream)
    level = native_library.levels()[-1]
    for _ in range(20):
        found, bad = in_c(level, stream, values, "float32", False, threads=6)
        assert bad == [None] * 6
        assert torch.equal(found, in_torch(integers, stream, values, "float32"))
