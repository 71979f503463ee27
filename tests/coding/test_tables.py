import math
import struct

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nwc.coding.tables import (
    MAX_SYMBOLS,
    PATCH_BITS,
    TOTAL,
    FrequencyTable,
    TableBank,
    cost,
    from_bytes,
    from_counts,
    from_probabilities,
    quantise,
    to_bytes,
)
from nwc.errors import BitstreamError


def make_table(first, *frequencies):
    return FrequencyTable(first, np.array(frequencies))


@pytest.mark.parametrize(
    ("first", "frequencies", "message"),
    [
        (0, [], "table has 0 symbols, wanted 1 to 256"),
        (0, [16] * 255 + [8, 8], "table has 257 symbols"),
        (0, [2048, 2047], "sum to 4095"),
        (0, [2048, 2049], "sum to 4097"),
        (0, [4097, -2, 1], "smallest -2"),
        (0, [0, 4096], "begins or ends with a symbol of frequency 0"),
        (0, [4096, 0], "begins or ends with a symbol of frequency 0"),
        (-(2**15) - 1, [4096], "from -32769"),
        (2**15, [4096], "to 32768"),
    ],
)
def test_a_table_checks_itself(first, frequencies, message):
    with pytest.raises(BitstreamError, match=message):
        FrequencyTable(first, np.array(frequencies, dtype=np.int64))


def test_properties_of_a_table():
    table = make_table(-2, 1024, 0, 2048, 1024)
    assert (table.last, table.mode, len(table)) == (1, 0, 4)
    assert table.starts().tolist() == [0, 1024, 1024, 3072]
    assert table.code_lengths().tolist() == [2, math.inf, 1, 2]


WEIGHTS = hnp.arrays(
    np.float64,
    st.integers(1, 256),
    elements=st.one_of(st.just(0.0), st.floats(1e-9, 1.0), st.floats(1.0, 1e12)),
).filter(lambda w: w.max() > 0)


@settings(deadline=None)
@given(WEIGHTS)
def test_quantise_sums_to_the_total_and_keeps_every_positive_weight(weights):
    f = quantise(weights)
    assert f.sum() == TOTAL
    assert (f[weights > 0] >= 1).all()
    assert (f[weights == 0] == 0).all()


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(1, 10**6)), st.data())
def test_no_single_move_improves_quantised_frequencies(weights, data):
    f = quantise(weights)
    giver = data.draw(st.integers(0, len(f) - 1))
    taker = data.draw(st.integers(0, len(f) - 1))
    if f[giver] == 1 or giver == taker:
        return
    moved = f.copy()
    moved[giver] -= 1
    moved[taker] += 1
    best = float((weights * np.log2(f)).sum())
    assert (weights * np.log2(moved)).sum() <= best * (1 + 1e-4) + 1e-6


@settings(deadline=None)
@given(st.data())
def test_tables_come_back_from_bytes(frequency_tables, data):
    tables = data.draw(st.lists(frequency_tables, max_size=4))
    back = from_bytes(to_bytes(tables), len(tables))
    assert [t.key for t in back] == [t.key for t in tables]
    assert [t.frequencies.tolist() for t in back] == [t.frequencies.tolist() for t in tables]


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=80), st.integers(0, 8))
def test_any_bytes_are_tables_or_raise(data, count):
    try:
        tables = from_bytes(data, count)
    except BitstreamError:
        return
    assert len(tables) == count


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_tables_raise_or_are_tables(frequency_tables, data):
    good = bytearray(to_bytes(data.draw(st.lists(frequency_tables, min_size=1, max_size=3))))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        tables = from_bytes(bytes(good), 1)
    except BitstreamError:
        return
    assert all(t.frequencies.sum() == TOTAL for t in tables)


def test_bytes_after_the_tables_raise():
    data = to_bytes([make_table(0, 4096)])
    with pytest.raises(BitstreamError, match=f"tables end after {len(data)} of {len(data) + 1}"):
        from_bytes(data + b"\0", 1)


def test_fewer_bytes_than_tables_raise():
    with pytest.raises(BitstreamError, match="5 tables want at least 15 bytes, got 3"):
        from_bytes(b"\0\0\0", 5)


@settings(deadline=None)
@given(st.data())
def test_a_bank_comes_back_from_bytes_and_keeps_each_table_once(frequency_tables, data):
    tables = data.draw(st.lists(frequency_tables, max_size=3))
    bank = TableBank()
    places = [bank.place(t) for t in tables + tables]
    assert places[: len(tables)] == places[len(tables) :]
    assert len(bank.tables) == len({t.key for t in tables})
    back = TableBank.from_bytes(bank.to_bytes())
    assert [back.place(t) for t in tables + tables] == places


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_bank_or_raise(data):
    try:
        bank = TableBank.from_bytes(data)
    except BitstreamError:
        return
    assert all(t.frequencies.sum() == TOTAL for t in bank.tables)


def sealed(data):
    return data + struct.pack("<I", crc32c.crc32c(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0", "table bank has 3 bytes, wanted at least 8"),
        (sealed(b"\x01\x80\0\0"), "table bank has 32769 tables, at most 4096 wanted"),
        (sealed(b"\x01\0\0\0")[:-1] + b"x", "checksum of the table bank does not match"),
    ],
)
def test_messages_of_a_damaged_bank(data, message):
    with pytest.raises(BitstreamError, match=message):
        TableBank.from_bytes(data)


COUNTS = hnp.arrays(
    np.int64,
    st.integers(1, 400),
    elements=st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 10**6)),
)


@settings(deadline=None)
@given(st.integers(-300, 300), COUNTS)
def test_a_counted_table_is_no_dearer_than_patching_all_but_the_mode(first, counts):
    table = from_counts(first, counts)
    assert len(table) <= MAX_SYMBOLS
    if counts.sum() == 0:
        return
    assert first <= table.first <= table.last < first + len(counts)
    mode = make_table(first + int(counts.argmax()), TOTAL)
    assert cost(table, first, counts) <= cost(mode, first, counts) * 1.001 + 1


def test_no_counts_make_the_constant_zero():
    table = from_counts(5, np.zeros(3, dtype=np.int64))
    assert (table.first, table.frequencies.tolist()) == (0, [TOTAL])


def test_far_outliers_are_left_to_patches():
    # 400,000 symbols of -1, 0, 1 and one at 90: one patch is cheaper than a wider table.
    table = from_counts(-1, np.array([10**5, 2 * 10**5, 10**5] + [0] * 89 + [1]))
    assert (table.first, table.last) == (-1, 1)


def test_a_prior_keeps_what_is_likely():
    pmf = np.array([1e-9, 2.0**-13, 0.5, 1e-7, 0.4, 2.0**-15])
    table = from_probabilities(-3, pmf)
    assert (table.first, table.last) == (-2, 1)
    assert (table.frequencies > 0).all()


def test_a_prior_wider_than_a_table_is_cut_to_its_best_256():
    spread = np.exp(-np.abs(np.arange(-300, 301)) / 300)
    table = from_probabilities(-300, spread / spread.sum())
    assert (len(table), table.first + table.last) in [(256, -1), (256, 1)]


def test_a_prior_of_nothing_likely_is_its_mode():
    pmf = np.full(2**16, 1e-6)
    pmf[77] = 2e-6
    table = from_probabilities(0, pmf)
    assert (table.first, table.frequencies.tolist()) == (77, [TOTAL])


@settings(deadline=None)
@given(st.data())
def test_cost_sums_code_lengths_and_patches(frequency_tables, data):
    table = data.draw(frequency_tables)
    values = data.draw(st.lists(st.integers(-1100, 1300), min_size=1, max_size=50))
    lengths = dict(zip(range(table.first, table.last + 1), table.code_lengths(), strict=True))
    patched = PATCH_BITS + lengths[table.mode]
    each = [lengths.get(value, math.inf) for value in values]
    wanted = sum(patched if math.isinf(bits) else bits for bits in each)
    first = min(values)
    counts = np.bincount(np.array(values) - first)
    assert cost(table, first, counts) == pytest.approx(wanted)


@pytest.mark.parametrize("value", [-(2**15), -(2**15) + 1, 2**15 - 256, 2**15 - 1])
def test_extreme_symbols_have_a_table(value):
    table = from_counts(value, np.array([7]))
    assert (table.first, table.last) == (value, value)


@settings(deadline=None)
@given(st.data())
def test_paired_tables_hold_an_even_and_an_odd_symbol_if_both_occur(data):
    counts = np.array(data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=400)))
    first = data.draw(st.integers(-500, 500))
    table = from_counts(first, counts, paired=True)
    if counts[::2].any() and counts[1::2].any():
        live = (table.first + np.flatnonzero(table.frequencies)) & 1
        assert set(live.tolist()) == {0, 1}
        even, odd = table.modes
        assert (even & 1, odd & 1) == (0, 1)
    elif counts.any():
        assert table.key == from_counts(first, counts).key


def test_a_paired_prior_has_two_symbols():
    pmf = np.zeros(9)
    pmf[4] = 1
    assert len(from_probabilities(-4, pmf)) == 1
    table = from_probabilities(-4, pmf, paired=True)
    assert (table.first, len(table)) == (-1, 3)
