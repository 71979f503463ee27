import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding.census import census, choose_tables, coded_bits, empirical_bits
from nwc.coding.tables import TOTAL, FrequencyTable, cost, from_counts, to_bytes
from nwc.coding.tiling import Classes
from nwc.coding.trellis import TRELLISES


def make_table(first, *frequencies):
    return FrequencyTable(first, np.array(frequencies))


def counted(values):
    first = int(values.min())
    return first, np.bincount(values.reshape(-1).astype(np.int64) - first)


def cells(symbols, columns, **options):
    classes = Classes.by_column(columns, symbols.shape[1])
    return census(symbols, classes, int(columns.max()) + 1, **options)


def empirical(symbols, columns, **options):
    return empirical_bits(cells(symbols, columns, **options))


def chosen_tables(symbols, columns, count, share, priors):
    classes = Classes.by_column(columns, symbols.shape[1])
    return choose_tables(census(symbols, classes, count, share_lanes=share), count, priors)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([None, *TRELLISES.values()]))
def test_every_symbol_is_counted_once_and_where_it_belongs(seed, share, trellis):
    rng = np.random.default_rng(seed)
    columns, chunks = rng.integers(1, 9, 2)
    integers = (rng.normal(size=(columns, chunks, 16)) * 10 ** rng.uniform(0, 4)).astype(np.int16)
    classes = Classes(
        rng.integers(0, 3, columns).astype(np.uint8),
        rng.integers(0, 3, (chunks, 16)).astype(np.uint8),
    )
    cells = list(census(integers, classes, 5, share_lanes=share, trellis=trellis))
    parities = 1 if trellis is None else 2
    assert len(cells) == 5 * parities * (1 if share else 16)
    assert sum(int(cell.counts.sum()) for cell in cells) == integers.size
    lanes = np.broadcast_to(np.arange(16), integers.shape)
    for group, place, first, counts in cells:
        parity, lane = place % parities, place // parities
        member = classes.full() == group
        if trellis is not None:
            member &= (integers & 1) == parity
        if not share:
            member &= lanes == lane
        symbols = integers[member].astype(np.int64)
        symbols = symbols if trellis is None else (symbols - parity) // 2
        found = np.repeat(first + np.arange(len(counts)), counts)
        assert np.array_equal(np.sort(symbols), found)


def test_counting_goes_on_after_a_million_symbols(monkeypatch):
    integers = np.zeros((70, 1000, 16), dtype=np.int16)
    integers[-1, -1, -2:] = [4, 2]
    classes = Classes.by_column(np.zeros(70, dtype=np.uint8), 1000)
    (cell,) = census(integers, classes, 1)
    assert (cell.first, cell.counts.tolist()) == (0, [70 * 16000 - 2, 0, 1, 0, 1])


@settings(deadline=None)
@given(st.data(), st.integers(0, 2**32 - 1), st.booleans())
def test_choose_tables_takes_counted_or_prior_whichever_is_smaller(
    frequency_tables, data, seed, share
):
    rng = np.random.default_rng(seed)
    class_count = data.draw(st.integers(1, 3))
    columns, chunks = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    symbols = np.rint(rng.normal(size=(columns, chunks, 16)) * rng.uniform(0, 9)).astype(np.int16)
    classes = rng.integers(0, class_count, columns).astype(np.uint8)
    # Half of the priors fit the data well, so that both answers occur.
    fitting = from_counts(*counted(symbols))
    prior = fitting if data.draw(st.booleans()) else data.draw(frequency_tables)
    chosen = chosen_tables(symbols, classes, class_count, share, [[prior]] * class_count)
    assert [len(row) for row in chosen] == [1 if share else 16] * class_count
    for k, row in enumerate(chosen):
        for channel, table in enumerate(row):
            members = symbols[classes == k]
            values = members if share else members[:, :, channel]
            if values.size == 0:
                assert table.frequencies.tolist() == [TOTAL]  # nothing to code, next to no bytes
                continue
            first, counts = counted(values)
            own = from_counts(first, counts)
            own_bits = cost(own, first, counts) + 8 * len(to_bytes([own]))
            wanted = own if own_bits < cost(prior, first, counts) else prior
            assert table.key == wanted.key


def test_a_large_tensor_pays_for_its_own_table_and_a_small_one_does_not():
    prior = make_table(-1, 1024, 2048, 1024)
    symbols = np.random.default_rng(0).choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=(64, 64, 16))
    symbols = symbols.astype(np.int16)
    for columns, takes_prior in [(1, True), (64, False)]:
        part = symbols[:columns] if columns > 1 else symbols[:1, :1]
        table = chosen_tables(part, np.zeros(len(part), dtype=np.uint8), 1, True, [[prior]])[0][0]
        assert (table is prior) == takes_prior


def test_a_class_without_columns_gets_a_table_too():
    symbols = np.ones((2, 1, 16), dtype=np.int16)
    chosen = chosen_tables(symbols, np.array([1, 1], dtype=np.uint8), 2, True, None)
    assert [row[0].first for row in chosen] == [0, 1]


def test_priors_of_a_channel_are_matched_to_it():
    priors = [[make_table(channel, TOTAL) for channel in range(16)]]
    symbols = np.broadcast_to(np.arange(16, dtype=np.int16), (3, 2, 16))
    chosen = chosen_tables(symbols, np.zeros(3, dtype=np.uint8), 1, False, priors)
    assert [table.first for table in chosen[0]] == list(range(16))


def test_empirical_bits_are_the_entropy_of_each_class():
    symbols = np.zeros((4, 1, 16), dtype=np.int16)
    symbols[1, :, :8] = 1  # class 0: one column of zeros, one half ones
    symbols[2:] = np.arange(16)  # class 1: sixteen values, all as frequent
    classes = np.array([0, 0, 1, 1], dtype=np.uint8)
    p = 0.25
    one = -32 * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert empirical(symbols, classes) == pytest.approx(one + 32 * 4)


def test_empirical_bits_of_channels():
    symbols = np.broadcast_to(np.arange(16, dtype=np.int16), (4, 2, 16)).copy()
    classes = np.zeros(4, dtype=np.uint8)
    assert empirical(symbols, classes, share_lanes=False) == 0
    symbols[:2, :, 3] = 40
    assert empirical(symbols, classes, share_lanes=False) == pytest.approx(8)


def test_coded_bits_count_patches():
    generator = np.random.default_rng(0)
    symbols = np.round(generator.normal(0, 3, (64, 32, 16))).astype(np.int16)
    classes = np.zeros(64, np.uint8)
    plain = empirical(symbols, classes)
    assert plain <= coded_bits(cells(symbols, classes)) <= 1.002 * plain + 200
    # Values that a table of 256 places cannot hold together.
    symbols[:, 0, 0] = generator.integers(-3000, 3000, 64)
    assert coded_bits(cells(symbols, classes)) > plain + 50 * 64
