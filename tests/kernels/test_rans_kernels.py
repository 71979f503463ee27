"""Every kernel equals the plain oracle `coding.tiling`: word for word and symbol for symbol.

The compiled one at every instruction set that this processor has.
"""

import os
from functools import partial
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding import rans, tiling
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, CodedTile, DecodingTables
from nwc.coding.trellis import TRELLISES
from nwc.errors import BitstreamError
from nwc.kernels import native_library, rans_native, rans_numba


def at_level(level, function, *arguments):
    with mock.patch.dict(os.environ, NWC_NATIVE_LEVEL=level):
        return function(*arguments)


LEVELS = native_library.levels() if native_library.available() else ()
DECODERS = {"numba": rans_numba.decode_tile}
DECODERS |= {level: partial(at_level, level, rans_native.decode_tile) for level in LEVELS}
every_decoder = pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS.keys())
every_level = pytest.mark.parametrize("level", LEVELS)


def test_the_library_was_built_where_it_must_be():
    if os.environ.get("NWC_REQUIRE_NATIVE") != "1":
        pytest.skip("NWC_REQUIRE_NATIVE is not 1: a package without compiled kernels is whole")
    assert native_library.available(), native_library.load().reason


# (columns, chunks): 0, 1, 63 and 1,000 steps
SHAPES = [(0, 5), (5, 0), (1, 1), (63, 1), (1, 63), (9, 7), (1000, 1), (1, 1000), (8, 125)]


def random_table(rng):
    """Any size from 1 to 256, any place; zeros inside and frequencies of 1 are common."""
    size = int(rng.choice([1, 2, 3, 17, 255, 256]))
    marks = np.sort(rng.integers(1, 4096, size - 1))
    first = int(rng.integers(-(2**15), 2**15 - 256))
    return FrequencyTable(first, np.diff(marks, prepend=0, append=4096))


def random_tile(rng, columns, chunks, count, class_count):
    """Symbols drawn evenly from what their tables can code, so that rare ones are frequent."""
    tables = [random_table(rng) for _ in range(count)]
    choice = rng.integers(0, count, (class_count, 16))
    of_columns = rng.integers(0, class_count, columns).astype(np.uint8)
    classes = Classes.by_column(of_columns, chunks)
    symbols = np.empty((columns, chunks, 16), dtype=np.int16)
    for column, lane in np.ndindex(columns, 16):
        table = tables[choice[of_columns[column], lane]]
        codable = table.first + np.flatnonzero(table.frequencies)
        symbols[column, :, lane] = rng.choice(codable, chunks)
    return symbols, classes, DecodingTables(tables, choice)


def random_paths(rng, columns, chunks, trellis):
    """As `random_tile`, for integers under classes of rows too and, if one is given, a trellis."""
    parities = 1 if trellis is None else 2
    first = [int(f) for f in rng.integers(-(2**13), 2**13, 5)]
    tables = []
    for f in first:
        table = random_table(rng)
        tables.append(FrequencyTable(f, table.frequencies))
    choice = rng.integers(0, len(tables), (5, 16, parities))
    classes = Classes(
        rng.integers(0, 3, columns).astype(np.uint8),
        rng.integers(0, 3, (chunks, 16)).astype(np.uint8),
    )
    if trellis is None:
        choice = choice[..., 0]
    coding = DecodingTables(tables, choice, trellis)
    return follow(rng, classes, coding), classes, coding


def follow(rng, classes, tables):
    """Integers that the tables can code, along paths of the trellis if there is one."""
    out = np.empty((len(classes.columns), *classes.rows.shape), dtype=np.int16)
    path = [0] * 16
    for place in np.ndindex(*out.shape):
        group, lane = classes.columns[place[0]] + classes.rows[place[1:]], place[2]
        choice = tables.choice[group, lane]
        parity = path[lane] & 1
        table = tables.tables[choice if tables.trellis is None else choice[parity]]
        symbol = int(rng.choice(table.first + np.flatnonzero(table.frequencies)))
        out[place] = symbol if tables.trellis is None else 2 * symbol + parity
        if tables.trellis is not None:
            path[lane] = tables.trellis.step(path[lane], symbol)
    return out


@pytest.mark.parametrize("states", [0, 4, 8, 32])
@pytest.mark.parametrize(("columns", "chunks"), [(1, 1), (0, 4), (7, 9), (2, 130)])
def test_equals_the_oracle_with_rows_and_paths(states, columns, chunks):
    rng = np.random.default_rng([states, columns, chunks])
    for _ in range(5):
        assert_equal_to_oracle(*random_paths(rng, columns, chunks, TRELLISES.get(states)))


@pytest.mark.parametrize("encode", [tiling.encode_tile, rans_numba.encode_tile])
@pytest.mark.parametrize("states", [4, 8, 32])
def test_a_path_that_leaves_the_trellis_is_refused(encode, states):
    rng = np.random.default_rng(0)
    integers, classes, tables = random_paths(rng, 4, 5, TRELLISES[states])
    for lane in (0, 7, 15):
        stray = integers.copy()
        stray[2, 3, lane] ^= 1
        with pytest.raises(BitstreamError, match=f"lane {lane} leaves the trellis"):
            encode(stray, classes, tables)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0, 4, 8, 32]))
def test_noise_decodes_as_in_the_oracle_with_rows_and_paths(seed, count, states):
    rng = np.random.default_rng(seed)
    _, classes, tables = random_paths(rng, 2, 3, TRELLISES.get(states))
    words = rng.integers(0, 2**16, count).astype(np.uint16)
    start = (rng.integers(0, 2**32, 16) >> rng.integers(0, 32, 16)).astype(np.uint32)
    assert_same_outcome(words, start, classes, tables)


def assert_equal_to_oracle(symbols, classes, tables):
    words, states = tiling.encode_tile(symbols, classes, tables)
    own_words, own_states = rans_numba.encode_tile(symbols, classes, tables)
    assert (own_words.dtype, own_states.dtype) == (words.dtype, states.dtype)
    assert np.array_equal(own_words, words)
    assert np.array_equal(own_states, states)
    for decode in (tiling.decode_tile, *DECODERS.values()):
        found = decode(words, states, classes, tables)
        assert found.dtype == np.int16
        assert np.array_equal(found, symbols)
    return words, states


@pytest.mark.parametrize(("columns", "chunks"), SHAPES)
@pytest.mark.parametrize(("count", "class_count"), [(1, 1), (3, 2), (40, 16)])
def test_equals_the_oracle(columns, chunks, count, class_count):
    rng = np.random.default_rng([columns, chunks, count])
    assert_equal_to_oracle(*random_tile(rng, columns, chunks, count, class_count))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 6),
    st.integers(0, 12),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_equals_the_oracle_on_any_tile(seed, columns, chunks, count, class_count):
    rng = np.random.default_rng(seed)
    assert_equal_to_oracle(*random_tile(rng, columns, chunks, count, class_count))


@pytest.mark.parametrize("first", [-(2**15), -1, 0, 2**15 - 256])
def test_constant_tables_take_no_words(first):
    tables = DecodingTables(
        [FrequencyTable(first, np.array([4096]))], np.zeros((1, 16), dtype=np.int64)
    )
    symbols = np.full((7, 9, 16), first, dtype=np.int16)
    words, states = assert_equal_to_oracle(
        symbols, Classes.by_column(np.zeros(7, dtype=np.uint8), 9), tables
    )
    assert len(words) == 0
    assert (states == rans.LOWER).all()


def test_constant_lanes_between_others():
    constant, even = FrequencyTable(3, np.array([4096])), FrequencyTable(-8, np.full(16, 256))
    tables = DecodingTables([constant, even], np.arange(16)[None, :] % 2)
    symbols = np.random.default_rng(0).integers(-8, 8, (1000, 1, 16)).astype(np.int16)
    symbols[:, :, ::2] = 3
    words, _ = assert_equal_to_oracle(
        symbols, Classes.by_column(np.zeros(1000, dtype=np.uint8), 1), tables
    )
    assert len(words) == 8 * 1000 * 4 // 16


@every_decoder
@pytest.mark.parametrize(("columns", "chunks"), SHAPES)
def test_every_place_of_the_output_is_written(columns, chunks, decode, monkeypatch):
    rng = np.random.default_rng(1)
    symbols, classes, tables = random_tile(rng, columns, chunks, 5, 3)
    expected_words, expected_states = tiling.encode_tile(symbols, classes, tables)
    rans_numba.encode_tile(symbols, classes, tables)  # compiled before memory is poisoned
    plain_empty = np.empty
    for poison in (0x00, 0x5A, 0xFF):

        def poisoned(shape, dtype=float, *args, _byte=poison, **options):
            out = plain_empty(shape, dtype, *args, **options)
            out.reshape(-1).view(np.uint8)[:] = _byte
            return out

        with monkeypatch.context() as patched:
            patched.setattr(np, "empty", poisoned)
            words, states = rans_numba.encode_tile(symbols, classes, tables)
            found = decode(words, states, classes, tables)
        assert np.array_equal(words, expected_words)
        assert np.array_equal(states, expected_states)
        assert np.array_equal(found, symbols)


def test_arguments_are_left_alone():
    rng = np.random.default_rng(2)
    symbols, classes, tables = random_tile(rng, 5, 6, 4, 2)
    before = symbols.copy()
    words, states = rans_numba.encode_tile(symbols, classes, tables)
    kept = words.copy(), states.copy()
    for array in (symbols, *classes, words, states):
        array.setflags(write=False)
    rans_numba.encode_tile(symbols, classes, tables)
    for decode in DECODERS.values():
        decode(words, states, classes, tables)
    assert np.array_equal(symbols, before)
    assert np.array_equal(words, kept[0])
    assert np.array_equal(states, kept[1])


@pytest.fixture(scope="module")
def coded():
    rng = np.random.default_rng(3)
    symbols, classes, tables = random_tile(rng, 9, 7, 6, 3)
    words, states = tiling.encode_tile(symbols, classes, tables)
    assert len(words) > 100
    return words, states, classes, tables


def outcome(decode, *arguments):
    """Symbols, or that there was an error."""
    try:
        return decode(*arguments).tolist()
    except BitstreamError:
        return BitstreamError


def assert_same_outcome(*arguments):
    plain = outcome(tiling.decode_tile, *arguments)
    for decode in DECODERS.values():
        assert outcome(decode, *arguments) == plain
    return plain


@every_decoder
@pytest.mark.parametrize("lost", [1, 2, 15, 16, 17, 100, None])
def test_too_few_words_raise(coded, lost, decode):
    words, *rest = coded
    left = words[: len(words) - lost] if lost else words[:0]
    with pytest.raises(BitstreamError, match=f"a lane wants more than the tile's {len(left)} wo"):
        decode(left, *rest)


@every_decoder
@pytest.mark.parametrize("more", [1, 15, 16, 17])
def test_too_many_words_raise(coded, more, decode):
    words, *rest = coded
    longer = np.append(words, np.zeros(more, dtype=np.uint16))
    message = f"tile ends after word {len(words)}, its index says {len(longer)}"
    with pytest.raises(BitstreamError, match=message):
        decode(longer, *rest)


def test_wrong_states_end_as_in_the_oracle(coded):
    words, states, *rest = coded
    rng = np.random.default_rng(4)
    for value in (0, 1, rans.LOWER - 1, rans.LOWER, 2**32 - 1):
        damaged = states.copy()
        damaged[int(rng.integers(16))] = value
        assert assert_same_outcome(words, damaged, *rest) is BitstreamError


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 3), st.integers(1, 4))
def test_noise_decodes_as_in_the_oracle(seed, count, columns, chunks):
    rng = np.random.default_rng(seed)
    _, classes, tables = random_tile(rng, columns, chunks, 3, 2)
    words = rng.integers(0, 2**16, count).astype(np.uint16)
    # Any state at all, also those below the lower bound that no encoder leaves.
    states = (rng.integers(0, 2**32, 16) >> rng.integers(0, 32, 16)).astype(np.uint32)
    assert_same_outcome(words, states, classes, tables)


def test_noise_leaves_the_lanes_as_in_the_oracle():
    # Noise does not end well, but the words it takes and the states it leaves are compared.
    rng = np.random.default_rng(5)
    _, classes, tables = random_tile(rng, 9, 7, 5, 3)
    words = rng.integers(0, 2**16, 2000).astype(np.uint16)
    states = rng.integers(0, 2**32, 16).astype(np.uint32)
    symbols = np.full((9, 7, 16), 0x5A5A, dtype=np.int16)
    final = states.copy()
    read = rans_numba._decode(
        words,
        final,
        classes.columns,
        7,
        tables.choice,
        tables.packed.reshape(-1),
        tables.first,
        symbols,
    )
    with pytest.raises(BitstreamError, match=f"ends after word {read}, its index says 2000"):
        tiling.decode_tile(words, states, classes, tables)
    lane = int((final != rans.LOWER).argmax())
    with pytest.raises(BitstreamError, match=f"lane {lane} ends at state {final[lane]}, "):
        tiling.decode_tile(words[:read], states, classes, tables)


def side_by_side(rng, trellis, widths, chunks):
    """Tiles of one band with what is in them: the same tables and rows, columns of their own."""
    _, classes, tables = random_paths(rng, sum(widths), chunks, trellis)
    tiles, parts, start = [], [], 0
    for width in widths:
        columns = classes.columns[start : start + width]
        part = Classes(columns, classes.rows)
        # Paths start anew in every tile: draw its integers from its own.
        values = follow(rng, part, tables)
        tiles.append(
            CodedTile(*tiling.encode_tile(values, part, tables), width, f"tile {start}: ")
        )
        parts.append(values)
        start += width
    return tiles, classes, tables, np.concatenate(parts)


WIDTHS = [[3], [2, 2], [3, 3, 1], [2, 0, 2, 1], [1] * 5, [2] * 9 + [1]]


@every_level
@pytest.mark.parametrize("states", [0, 8, 32])
@pytest.mark.parametrize("widths", WIDTHS)
def test_tiles_together_are_tiles_alone(level, states, widths):
    rng = np.random.default_rng([states, len(widths)])
    for chunks in (1, 9, 17):
        *arguments, values = side_by_side(rng, TRELLISES.get(states), widths, chunks)
        assert np.array_equal(at_level(level, rans_native.decode_tiles, *arguments), values)


@every_level
def test_rows_of_lanes_that_share_a_table(level):
    """The layout of the default codec, in which tables are chosen by class alone."""
    rng = np.random.default_rng(7)
    for states in (0, 4, 8, 32):
        _, classes, tables = random_paths(rng, 6, 11, TRELLISES.get(states))
        choice = rng.integers(0, len(tables.tables), (5, 1, 2)).repeat(16, 1)
        choice = choice if states else np.ascontiguousarray(choice[..., 0])
        tables = DecodingTables(tables.tables, choice, tables.trellis)
        values = follow(rng, classes, tables)
        words = tiling.encode_tile(values, classes, tables)
        found = at_level(level, rans_native.decode_tile, *words, classes, tables)
        assert np.array_equal(found, values)


@every_level
@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_the_damaged_one_of_many_is_named(level, damaged):
    rng = np.random.default_rng(8)
    tiles, *rest, _ = side_by_side(rng, TRELLISES[8], [2, 2, 2, 2, 1], 9)
    short = tiles[damaged]._replace(words=tiles[damaged].words[:-1])
    with pytest.raises(BitstreamError, match=f"^tile {2 * damaged}: a lane wants more"):
        at_level(
            level,
            rans_native.decode_tiles,
            [*tiles[:damaged], short, *tiles[damaged + 1 :]],
            *rest,
        )
    states = tiles[damaged].states.copy()
    states[3] ^= 1 << 30
    wrong = tiles[damaged]._replace(states=states)
    with pytest.raises(BitstreamError, match=f"^tile {2 * damaged}: "):
        at_level(
            level,
            rans_native.decode_tiles,
            [*tiles[:damaged], wrong, *tiles[damaged + 1 :]],
            *rest,
        )


@every_level
def test_words_at_odd_addresses(level, coded):
    words, *rest = coded
    raw = np.frombuffer(b"x" + words.tobytes(), dtype=np.uint8)[1:].view("<u2")
    found = at_level(level, rans_native.decode_tile, raw, *rest)
    assert np.array_equal(found, tiling.decode_tile(words, *rest))


@every_level
def test_nothing_beyond_the_integers_is_written(level):
    """Decoded into the middle of a larger array, with words in the middle of others."""
    rng = np.random.default_rng(9)
    tiles, classes, tables, values = side_by_side(rng, TRELLISES[8], [2, 3], 9)
    plain_empty, guard = np.empty, 64
    kept = []

    def guarded(shape, dtype=float, *args, **options):
        if dtype != np.int16:
            return plain_empty(shape, dtype, *args, **options)
        size = int(np.prod(shape))
        whole = np.full(size + 2 * guard, 0x5A5A, dtype=np.int16)
        kept.append(whole)
        return whole[guard : guard + size].reshape(shape)

    with mock.patch.object(np, "empty", guarded):
        found = at_level(level, rans_native.decode_tiles, tiles, classes, tables)
    assert np.array_equal(found, values)
    (whole,) = kept
    assert (whole[:guard] == 0x5A5A).all()
    assert (whole[-guard:] == 0x5A5A).all()
