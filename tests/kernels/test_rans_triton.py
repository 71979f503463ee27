"""The GPU kernel equals the plain oracle `coding.tiling`: symbol for symbol, error for error."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nwc.coding import bitstream, rans, tiling
from nwc.coding.bitstream import Bitstream
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, DecodingTables, Profile
from nwc.coding.trellis import TRELLISES
from nwc.errors import BitstreamError, ConfigError
from nwc.kernels import gpu
from nwc.kernels.gpu import BadTileError, DeviceBatch, Plan
from nwc.kernels.tile_batch import Coded, Place, batch

# Hypothesis runs many examples with one fixture, which is a string.
FEW = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_table(rng, low=-(2**13), high=2**13):
    """Any size from 1 to 256, any place; zeros inside and frequencies of 1 are common."""
    size = int(rng.choice([1, 2, 3, 17, 255, 256]))
    marks = np.sort(rng.integers(1, 4096, size - 1))
    frequencies = np.diff(marks, prepend=0, append=4096)
    return FrequencyTable(int(rng.integers(low, high)), frequencies)


def random_tile(rng, columns, chunks, trellis=None, row_classes=True):
    """Integers that their tables can code, drawn evenly, so that rare ones are frequent."""
    tables = [random_table(rng) for _ in range(5)]
    choice = rng.integers(0, 5, (5, 16, 1 if trellis is None else 2))
    classes = Classes(
        rng.integers(0, 3, columns).astype(np.uint8),
        rng.integers(0, 3 if row_classes else 1, (chunks, 16)).astype(np.uint8),
    )
    integers = np.empty((columns, chunks, 16), dtype=np.int16)
    path = [0] * 16
    for column, chunk, lane in np.ndindex(columns, chunks, 16):
        parity = 0 if trellis is None else path[lane] & 1
        group = classes.columns[column] + classes.rows[chunk, lane]
        table = tables[choice[group, lane, parity]]
        symbol = int(rng.choice(table.first + np.flatnonzero(table.frequencies)))
        integers[column, chunk, lane] = symbol if trellis is None else 2 * symbol + parity
        if trellis is not None:
            path[lane] = trellis.step(path[lane], symbol)
    if trellis is None:
        choice = choice[..., 0]
    return integers, classes, DecodingTables(tables, choice, trellis)


def assert_equal_to_oracle(integers, classes, tables, device):
    words, states = tiling.encode_tile(integers, classes, tables)
    found = gpu.decode_tile(words, states, classes, tables, device)
    assert found.dtype == np.int16
    assert np.array_equal(found, integers)
    return words, states


@pytest.mark.parametrize("row_classes", [False, True])
@pytest.mark.parametrize("states", [0, 4, 8, 32])
@pytest.mark.parametrize(("columns", "chunks"), [(1, 1), (63, 1), (1, 63), (7, 9)])
def test_equals_the_oracle(states, columns, chunks, row_classes, device):
    rng = np.random.default_rng([states, columns, chunks, row_classes])
    tile = random_tile(rng, columns, chunks, TRELLISES.get(states), row_classes)
    assert_equal_to_oracle(*tile, device)


@FEW
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([0, 4, 8, 32]),
    st.booleans(),
)
def test_equals_the_oracle_on_any_tile(device, seed, columns, chunks, states, row_classes):
    rng = np.random.default_rng(seed)
    tile = random_tile(rng, columns, chunks, TRELLISES.get(states), row_classes)
    assert_equal_to_oracle(*tile, device)


@pytest.mark.parametrize("first", [-(2**15), -1, 0, 2**15 - 256])
def test_constant_tables_take_no_words(first, device):
    table = FrequencyTable(first, np.array([4096]))
    tables = DecodingTables([table], np.zeros((1, 16), dtype=np.int64))
    symbols = np.full((3, 5, 16), first, dtype=np.int16)
    classes = Classes.by_column(np.zeros(3, dtype=np.uint8), 5)
    words, states = assert_equal_to_oracle(symbols, classes, tables, device)
    assert len(words) == 0
    assert (states == rans.LOWER).all()


@pytest.fixture(scope="module")
def coded():
    rng = np.random.default_rng(4)
    integers, classes, tables = random_tile(rng, 5, 8, TRELLISES[8])
    words, states = tiling.encode_tile(integers, classes, tables)
    assert len(words) > 100
    return words, states, classes, tables


@pytest.mark.parametrize("lost", [1, 2, 15, 16, 17, 100, None])
def test_too_few_words_raise(coded, lost, device):
    words, *rest = coded
    left = words[: len(words) - lost] if lost else words[:0]
    with pytest.raises(BitstreamError, match="tile 0: its words run out or are left over"):
        gpu.decode_tile(left, *rest, device)


@pytest.mark.parametrize("more", [1, 15, 16, 17])
def test_too_many_words_raise(coded, more, device):
    words, *rest = coded
    longer = np.append(words, np.zeros(more, dtype=np.uint16))
    with pytest.raises(BitstreamError, match="left over"):
        gpu.decode_tile(longer, *rest, device)


def outcome(decode, *arguments):
    """Integers, or that there was an error."""
    try:
        return decode(*arguments).tolist()
    except BitstreamError:
        return BitstreamError


@pytest.mark.parametrize("value", [0, 1, rans.LOWER - 1, rans.LOWER, 2**32 - 1])
def test_wrong_states_raise(coded, value, device):
    words, states, *rest = coded
    damaged = states.copy()
    damaged[7] = value
    assert outcome(tiling.decode_tile, words, damaged, *rest) is BitstreamError
    assert outcome(gpu.decode_tile, words, damaged, *rest, device) is BitstreamError


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0, 4, 8, 32]))
def test_noise_decodes_as_in_the_oracle(device, seed, count, states):
    rng = np.random.default_rng(seed)
    _, classes, tables = random_tile(rng, 2, 3, TRELLISES.get(states))
    words = rng.integers(0, 2**16, count).astype(np.uint16)
    # Any state at all, also those below the lower bound that no encoder leaves.
    start = (rng.integers(0, 2**32, 16) >> rng.integers(0, 32, 16)).astype(np.uint32)
    plain = outcome(tiling.decode_tile, words, start, classes, tables)
    assert outcome(gpu.decode_tile, words, start, classes, tables, device) == plain


def test_noise_writes_what_a_decoder_without_checks_would(device):
    # Noise does not end well, but until it does the integers follow from the words.
    rng = np.random.default_rng(5)
    _, classes, tables = random_tile(rng, 4, 5, TRELLISES[8])
    words = rng.integers(0, 2**16, 2000).astype(np.uint16)
    states = rng.integers(rng.integers(2**16, 2**32, 16), 2**32).astype(np.uint32)
    matrix = Coded(words, [tiling.Tile(0, 4, 0, 5, 0, 2000, 0, states)], classes, tables, 80, 4)
    parts = batch([matrix], [Place(0, 80, 1)], tiles_per_program=2)
    out = torch.full((4, 5, 16), 0x5A5A, dtype=torch.int16, device=device)
    DeviceBatch(parts, device).run(Plan(parts, 2, device), "integers", out)
    flat = tiling._tables_of(tables, classes).reshape(-1, 16, 2)
    lanes = rans._Decoder(words, states, tables.tables)
    path = [0] * 16
    for step, row in enumerate(out.cpu().numpy().reshape(-1, 16).tolist()):
        parity = [s & 1 for s in path]
        symbols = lanes.step(flat[step][range(16), parity])
        assert row == [2 * q + p for q, p in zip(symbols, parity, strict=True)]
        path = [tables.trellis.step(s, q) for s, q in zip(path, symbols, strict=True)]


def stream(seed, columns, chunks, states=0, profile=None, row_classes=False, lost_rows=0):
    """A stream whose tiles each follow a path of their own, and its integers."""
    rng = np.random.default_rng(seed)
    profile, trellis = profile or Profile(48, 96), TRELLISES.get(states)
    tables = [random_table(rng, -200, 200) for _ in range(4)]
    # Both kinds of symbol, so that what has to be patched has a stand-in.
    tables = [t if len(t) > 2 else FrequencyTable(t.first, np.full(16, 256)) for t in tables]
    choice = rng.integers(0, 4, (5, 16 * (1 if trellis is None else 2)))
    classes = Classes(
        rng.integers(0, 3, columns).astype(np.uint8),
        rng.integers(0, 3 if row_classes else 1, (chunks, 16)).astype(np.uint8),
    )
    integers = rng.integers(-250, 250, (columns, chunks, 16)).astype(np.int16)
    tile_chunks, tile_columns = tiling.tile_shape(chunks, columns, profile)
    if trellis is not None:
        for column, chunk in tiling.tile_origins(chunks, columns, tile_chunks, tile_columns):
            part = integers[column : column + tile_columns, chunk : chunk + tile_chunks]
            steps = part.reshape(-1, 16)
            for lane in range(16):
                path = 0
                for step in range(len(steps)):
                    symbol = int(steps[step, lane]) >> 1
                    steps[step, lane] = 2 * symbol + (path & 1)
                    path = trellis.step(path, symbol)
            part[:] = steps.reshape(part.shape)
    data = bitstream.encode(
        integers,
        classes,
        [[tables[i] for i in row] for row in choice],
        rows=16 * chunks - lost_rows,
        trellis=trellis,
        profile=profile,
    )
    return Bitstream(data), integers


def decode_all(streams, device, tiles_per_program=4):
    """Integers of every stream, patches not applied, from one batch."""
    shapes = [(s.head.columns, s.head.chunks, 16) for s in streams]
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts = np.cumsum([0, *sizes]).tolist()
    places = [Place(a, s.head.chunks * 16, 1) for a, s in zip(starts, streams, strict=False)]
    parts = batch(
        [Coded.of(s) for s in streams],
        places,
        tiles_per_program=tiles_per_program,
        padding=True,
    )
    out = torch.full((starts[-1],), 0x5A5A, dtype=torch.int16, device=device)
    plan = Plan(parts, tiles_per_program, device)
    DeviceBatch(parts, device).run(plan, "integers", out)
    plan.check()
    flat = out.cpu().numpy()
    return [flat[a : a + n].reshape(s) for a, n, s in zip(starts, sizes, shapes, strict=False)]


def unpatched(parsed):
    """The integers that a stream's words hold, without its patches."""
    parsed.patches = tuple(part[:0] for part in parsed.patches)
    return parsed.symbols()


def test_many_matrices_decode_in_one_batch(device):
    # Scalar and trellis streams, with and without classes of rows, tiles of many shapes.
    made = [
        stream(1, 5, 4),
        stream(2, 3, 7, states=8, row_classes=True),
        stream(3, 1, 1, states=32, lost_rows=5),
        stream(4, 6, 5, row_classes=True, lost_rows=15),
        stream(5, 7, 3, states=4, profile=Profile(16, 64)),
    ]
    streams = [parsed for parsed, _ in made]
    assert all(len(parsed.patches[0]) for parsed in streams)
    for parsed, found in zip(streams, decode_all(streams, device), strict=True):
        assert np.array_equal(found, unpatched(parsed))


@pytest.mark.parametrize("tiles", [1, 2, 8])
def test_programs_of_any_size_give_the_same(tiles, device):
    if device == "cuda" and tiles == 1:
        pytest.skip("a warp holds two tiles")
    parsed, _ = stream(6, 5, 4, states=8)
    (found,) = decode_all([parsed], device, tiles)
    assert np.array_equal(found, unpatched(parsed))


def test_the_bad_tile_is_named(device):
    streams = [stream(7, 5, 4)[0], stream(8, 6, 4)[0]]
    broken = streams[1].container.payload.copy()
    streams[1].container = streams[1].container._replace(payload=broken)
    words = streams[1].words(streams[1].tiles[3])
    words[len(words) // 2 :] ^= 0x1111
    with pytest.raises(BadTileError) as caught:
        decode_all(streams, device)
    assert (caught.value.matrix, caught.value.tile) == (1, 3)


def test_a_matrix_without_tiles_is_refused():
    tables = DecodingTables([FrequencyTable(0, np.array([4096]))], np.zeros((1, 16), np.int64))
    classes = Classes.by_column(np.zeros(0, dtype=np.uint8), 3)
    empty = Coded(np.zeros(0, np.uint16), [], classes, tables, 48, 1)
    with pytest.raises(ConfigError, match="without tiles"):
        batch([empty], [Place(0, 48, 1)], tiles_per_program=2)
