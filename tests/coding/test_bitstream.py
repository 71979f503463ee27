from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nwc.coding import bitstream, tiling
from nwc.coding.bitstream import BANK_BIT, Bitstream, rebank
from nwc.coding.census import census
from nwc.coding.census import choose_tables as choose
from nwc.coding.container import Section
from nwc.coding.tables import MAX_BANK_TABLES, FrequencyTable, TableBank
from nwc.coding.tiling import PROFILES, Classes, Profile
from nwc.errors import BitstreamError
from nwc.kernels import rans_numba

DECODERS = {"oracle": tiling.decode_tile, "numba": rans_numba.decode_tile}
LIMIT = 2**15 - 1
"""Largest magnitude of a symbol that the compressor makes."""

COIN = FrequencyTable(0, np.array([2048, 2048]))


def encode(symbols, columns, tables, **options):
    """Classes by column."""
    classes = Classes.by_column(columns, symbols.shape[1])
    return bitstream.encode(symbols, classes, tables, **options)


def choose_tables(symbols, columns, count):
    classes = Classes.by_column(columns, symbols.shape[1])
    return choose(census(symbols, classes, count), count, None)


def normal(seed, rows, columns, spread=3.0):
    values = np.random.default_rng(seed).normal(size=(columns, -(-rows // 16), 16)) * spread
    return np.rint(values).astype(np.int16)


def encode_counted(symbols, rows, **options):
    classes = np.zeros(len(symbols), dtype=np.uint8)
    tables = choose_tables(symbols, classes, 1)
    return encode(symbols, classes, tables, rows=rows, **options)


def by_tiles(stream, decoder):
    out = np.zeros((stream.head.columns, stream.head.chunks, 16), dtype=np.int16)
    for i, tile in enumerate(stream.tiles):
        columns = slice(tile.column, tile.column + tile.columns)
        chunks = slice(tile.chunk, tile.chunk + tile.chunks)
        out[columns, chunks] = stream.tile(i, decoder)
    return out


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_symbols_under_any_tables_come_back(frequency_tables, data):
    rows, columns = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 6))
    class_count = data.draw(st.integers(1, 3))
    width = data.draw(st.sampled_from([1, 16]))
    few = data.draw(st.lists(frequency_tables, min_size=1, max_size=4))
    tables = [[few[(3 * k + c) % len(few)] for c in range(width)] for k in range(class_count)]
    shape = (columns, -(-rows // 16), 16)
    symbols = data.draw(hnp.arrays(np.int16, shape, elements=st.integers(-LIMIT, LIMIT)))
    classes = data.draw(hnp.arrays(np.uint8, columns, elements=st.integers(0, class_count - 1)))
    profile = data.draw(st.sampled_from([*PROFILES.values(), Profile(16, 32), Profile(32, 96)]))
    before = symbols.copy()

    result = encode(symbols, classes, tables, rows=rows, profile=profile)
    kernel = encode(
        symbols,
        classes,
        tables,
        rows=rows,
        profile=profile,
        tile_encoder=rans_numba.encode_tile,
    )
    assert result == kernel
    assert np.array_equal(symbols, before)  # the caller's array is left alone
    stream = Bitstream(result)
    assert np.array_equal(stream.classes.columns, classes)
    for decoder in DECODERS.values():
        assert np.array_equal(stream.symbols(decoder), symbols)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_size_is_the_cross_entropy_and_64_bits_a_lane(frequency_tables, data, seed):
    rng = np.random.default_rng(seed)
    table = data.draw(frequency_tables)
    rows, columns = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 40))
    shape = (columns, -(-rows // 16), 16)
    places = rng.choice(len(table), shape, p=table.frequencies / 4096)
    symbols = (places + table.first).astype(np.int16)
    classes = np.zeros(columns, dtype=np.uint8)
    profile = data.draw(st.sampled_from([*PROFILES.values(), Profile(64, 256)]))
    stream = Bitstream(encode(symbols, classes, [[table]], rows=rows, profile=profile))
    ideal = float(table.code_lengths()[places].sum())
    states = 32 * 16 * len(stream.tiles)
    assert 16 * stream.head.words + states <= 1.001 * ideal + 64 * 16 * len(stream.tiles)


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, 300), (300, 1), (15, 7), (17, 33), (5000, 9), (100, 700)]
)
def test_every_way_of_decoding_gives_the_same(profile, rows, columns):
    symbols = normal(rows, rows, columns)
    symbols.reshape(-1)[::97] = 1000  # patches
    symbols.reshape(-1)[::7] = 2
    data = encode_counted(
        symbols, rows, profile=PROFILES[profile], tile_encoder=rans_numba.encode_tile
    )
    stream = Bitstream(data)
    with ThreadPoolExecutor(4) as executor:
        for decoder in DECODERS.values():
            assert np.array_equal(stream.symbols(decoder), symbols)
            assert np.array_equal(stream.symbols(decoder, executor), symbols)
            assert np.array_equal(by_tiles(stream, decoder), symbols)


def test_tiles_decode_in_any_order_and_again():
    symbols = normal(1, 70, 30)
    stream = Bitstream(encode_counted(symbols, 70, profile=Profile(32, 128)))
    assert len(stream.tiles) > 20
    order = np.random.default_rng(0).permutation(len(stream.tiles))
    first = {int(i): stream.tile(int(i)) for i in order}
    for i, tile in enumerate(stream.tiles):
        part = symbols[tile.column :, tile.chunk :][: tile.columns, : tile.chunks]
        assert np.array_equal(first[i], part)
        assert np.array_equal(stream.tile(i), part)


@pytest.mark.parametrize("i", [-1, 1])
def test_a_tile_that_does_not_exist_raises(i):
    stream = Bitstream(encode_counted(normal(0, 16, 4), 16))
    with pytest.raises(BitstreamError, match=f"tile {i} does not exist, there are 1"):
        stream.tile(i)


def test_symbols_outside_their_table_are_patches():
    symbols = np.zeros((4, 2, 16), dtype=np.int16)
    symbols[0, 0, 1] = symbols[3, 1, 15] = 2
    symbols[2, 0, 0] = -LIMIT
    # 2 lies between the ends of its table, but at frequency 0.
    hole = FrequencyTable(0, np.array([4000, 48, 0, 48]))
    stream = Bitstream(encode(symbols, np.zeros(4, dtype=np.uint8), [[hole]], rows=32))
    places, values = stream.patches
    assert places.tolist() == [1, 64, 127]
    assert values.tolist() == [2, -LIMIT, 2]
    assert np.array_equal(stream.symbols(), symbols)


def test_patches_reach_the_tile_that_holds_them():
    symbols = normal(2, 96, 12, spread=0.4)
    symbols[::5, ::2, 3] = 500
    stream = Bitstream(encode_counted(symbols, 96, profile=Profile(32, 64)))
    assert len(stream.patches[0]) == 9
    assert np.array_equal(by_tiles(stream, rans_numba.decode_tile), symbols)


@pytest.mark.parametrize("value", [-(2**15), LIMIT])
def test_the_extreme_symbols_can_be_patches(value):
    symbols = np.zeros((1, 1, 16), dtype=np.int16)
    symbols[0, 0, 4] = value
    data = encode(symbols, np.zeros(1, dtype=np.uint8), [[COIN]], rows=16)
    assert np.array_equal(Bitstream(data).symbols(), symbols)


def test_a_constant_matrix_has_no_words():
    symbols = np.full((40, 3, 16), -7, dtype=np.int16)
    stream = Bitstream(encode_counted(symbols, 48))
    assert stream.head.words == 0
    for decoder in DECODERS.values():
        assert np.array_equal(stream.symbols(decoder), symbols)


def test_what_the_head_says_comes_back():
    symbols = normal(0, 33, 5)
    extra = {Section.GAIN: b"gain", Section.ERRORS: b"e"}
    stream = Bitstream(encode_counted(symbols, 33, transposed=True, extra=extra))
    assert (stream.head.rows, stream.head.columns, stream.head.transposed) == (33, 5, True)
    assert bytes(stream.container.section(Section.GAIN)) == b"gain"
    assert bytes(stream.container.section(Section.ERRORS)) == b"e"
    assert Section.CLASSES not in stream.container.sections
    assert Section.PATCHES not in stream.container.sections


@pytest.mark.parametrize("width", [1, 16])
def test_classes_and_channels_have_their_own_tables(width):
    # Each class and channel is a constant of its own, in constant tables: a mix-up would show.
    tables = [
        [FrequencyTable(20 * k + c, np.array([4096])) for c in range(width)] for k in range(3)
    ]
    classes = np.array([2, 0, 1, 0], dtype=np.uint8)
    lanes = np.arange(16) if width == 16 else np.zeros(16)
    symbols = (20 * classes[:, None, None] + lanes + np.zeros((4, 2, 16))).astype(np.int16)
    stream = Bitstream(encode(symbols, classes, tables, rows=32))
    assert stream.head.words == 0
    assert len(stream.patches[0]) == 0
    assert len(stream.container.section(Section.TABLE_MAP)) == 2 * 3 * width
    assert np.array_equal(stream.symbols(), symbols)


def test_equal_tables_are_stored_once():
    tables = [[FrequencyTable(0, np.array([2048, 2048]))] * 16 for _ in range(2)]
    classes = np.array([0, 1], dtype=np.uint8)
    data = encode(np.zeros((2, 1, 16), dtype=np.int16), classes, tables, rows=16)
    assert bytes(Bitstream(data).container.section(Section.TABLES)[:2]) == b"\x01\x00"


def test_bank_tables_are_kept_outside():
    bank = TableBank([FrequencyTable(5, np.array([4096]))])
    own = FrequencyTable(-1, np.array([1024, 2048, 1024]))
    symbols = np.zeros((2, 2, 16), dtype=np.int16)
    symbols[0, 0, :3] = [1, 0, 1]
    classes = np.array([0, 1], dtype=np.uint8)
    data = encode(
        symbols,
        classes,
        [[COIN], [own]],
        rows=20,
        bank=bank,
        bank_tables=frozenset([COIN.key]),
    )
    assert [t.key for t in bank.tables[1:]] == [COIN.key]
    stored = TableBank.from_bytes(bank.to_bytes())
    stream = Bitstream(data, stored)
    places = np.frombuffer(stream.container.section(Section.TABLE_MAP), "<u2")
    assert places.tolist() == [BANK_BIT | 1, 0]
    assert np.array_equal(stream.symbols(), symbols)
    with pytest.raises(BitstreamError, match="shared table 1 is missing, there are 0"):
        Bitstream(data)


def test_a_table_that_a_full_bank_cannot_take_goes_into_the_stream():
    bank = TableBank([FrequencyTable(i - 2**14, np.array([4096])) for i in range(MAX_BANK_TABLES)])
    zeros, classes = np.zeros((1, 1, 16), dtype=np.int16), np.zeros(1, dtype=np.uint8)
    data = encode(zeros, classes, [[COIN]], rows=16, bank=bank, bank_tables=frozenset([COIN.key]))
    assert len(bank.tables) == MAX_BANK_TABLES
    np.testing.assert_array_equal(Bitstream(data).symbols(), zeros)


def test_a_damaged_bank_does_not_pass_unnoticed():
    # The bank lies outside the stream's checksums, and a table whose first symbol has changed
    # decodes without a contradiction: the bank must be checked when it or the stream is read.
    symbols = normal(3, 64, 16, spread=1.0).clip(-2, 2)
    table = FrequencyTable(-2, np.array([256, 1024, 1536, 1024, 256]))
    bank = TableBank()
    data = encode(
        symbols,
        np.zeros(16, dtype=np.uint8),
        [[table]],
        rows=64,
        bank=bank,
        bank_tables=frozenset([table.key]),
    )
    damaged = bytearray(bank.to_bytes())
    damaged[4] ^= 1  # the low byte of the table's first symbol
    with pytest.raises(BitstreamError):
        Bitstream(data, TableBank.from_bytes(bytes(damaged))).symbols()


def test_more_symbols_than_a_stream_holds_raise():
    symbols = np.broadcast_to(np.int16(0), (2**14, 2**14, 16))
    classes = np.zeros(2**14, dtype=np.uint8)
    with pytest.raises(BitstreamError, match="exceed the 4294967295 symbols of one stream"):
        encode(symbols, classes, [[COIN]], rows=2**18)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_raise(data):
    with pytest.raises(BitstreamError):
        Bitstream(data)


def banked(seed, bank, shared):
    """A stream of two classes, one of which may have its table in the bank."""
    symbols = normal(seed, 40, 12)
    classes = (np.arange(12) % 2).astype(np.uint8)
    tables = choose_tables(symbols, classes, 2)
    keys = frozenset({tables[0][0].key} if shared else ())
    return symbols, encode(symbols, classes, tables, rows=40, bank=bank, bank_tables=keys)


def test_streams_with_banks_of_their_own_join_one():
    joined = TableBank()
    streams = []
    for seed in (0, 1, 0):
        bank = TableBank()
        symbols, data = banked(seed, bank, shared=True)
        streams.append((symbols, data, rebank(data, bank, joined)))
    assert len(joined.tables) == 2  # the third stream has the first one's
    for symbols, data, moved in streams:
        assert len(moved) == len(data)
        assert np.array_equal(Bitstream(moved, joined).symbols(), symbols)
    # It is what would have been written with the joined bank at once.
    again = TableBank()
    assert [banked(seed, again, shared=True)[1] for seed in (0, 1, 0)] == [m for *_, m in streams]


def test_a_stream_without_shared_tables_does_not_change():
    _, data = banked(0, None, shared=False)
    joined = TableBank()
    assert rebank(data, TableBank(), joined) == data
    assert joined.tables == []


def test_a_full_bank_leaves_tables_in_the_stream():
    bank = TableBank()
    symbols, data = banked(0, bank, shared=True)
    full = TableBank([COIN] * MAX_BANK_TABLES)
    moved = rebank(data, bank, full)
    assert len(full.tables) == MAX_BANK_TABLES
    assert np.array_equal(Bitstream(moved, full).symbols(), symbols)
