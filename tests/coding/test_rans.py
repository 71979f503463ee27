import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding import rans
from nwc.coding.tables import FrequencyTable, from_counts
from nwc.coding.tiling import Classes, EncodingTables
from nwc.errors import BitstreamError
from nwc.kernels import rans_numba

HALVES = FrequencyTable(0, np.array([2048, 2048]))


def draw_symbols(rng, tables, choice):
    """Symbols [steps, 16] drawn from the tables that code them."""
    symbols = np.empty(choice.shape, dtype=np.int64)
    for place, k in np.ndenumerate(choice):
        table = tables[k]
        symbols[place] = table.first + rng.choice(len(table), p=table.frequencies / 4096)
    return symbols


def test_one_step_by_hand():
    # Every lane codes symbol 1 of two equal ones: x = 2^16 becomes 2^17 + 2048.
    one = np.ones((1, 16), dtype=np.int64)
    words, states = rans.encode(one, np.zeros_like(one), [HALVES])
    assert len(words) == 0
    assert states.tolist() == [(1 << 17) + 2048] * 16


def test_words_are_read_in_lane_order():
    # Four bits a symbol: after four steps every lane has pushed out one word.
    table = FrequencyTable(0, np.full(16, 256))
    symbols = np.random.default_rng(0).integers(0, 16, (5, 16))
    choice = np.zeros_like(symbols)
    words, states = rans.encode(symbols, choice, [table])
    assert len(words) == 16
    # The first lane to fall under 2^16 is lane 0: it wants the first word.
    first_lane, _ = rans.encode(np.array([[s] * 16 for s in symbols[:, 0]]), choice, [table])
    assert words[0] == first_lane[0]
    assert np.array_equal(rans.decode(words, states, choice, [table]), symbols)


def test_lookup_packs_symbol_frequency_and_offset():
    packed = rans.lookup([FrequencyTable(9, np.array([1, 0, 4095])), HALVES])
    assert packed.shape == (2, 4096)
    assert packed[0, 0] == 0
    assert packed[0, 1] == 2 << 24 | 4094 << 12
    assert packed[0, 4095] == 2 << 24 | 4094 << 12 | 4094
    assert packed[1, 2048] == 1 << 24 | 2047 << 12


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_symbols_come_back(frequency_tables, data, seed, steps):
    rng = np.random.default_rng(seed)
    tables = data.draw(st.lists(frequency_tables, min_size=1, max_size=4))
    choice = rng.integers(0, len(tables), (steps, 16))
    symbols = draw_symbols(rng, tables, choice)
    words, states = rans.encode(symbols, choice, tables)
    assert (states >= rans.LOWER).all()
    assert np.array_equal(rans.decode(words, states, choice, tables), symbols)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 20, 200]))
def test_size_is_the_cross_entropy_and_a_little(frequency_tables, data, seed, steps):
    rng = np.random.default_rng(seed)
    table = data.draw(frequency_tables)
    symbols = rng.choice(len(table), (steps, 16), p=table.frequencies / 4096)
    choice = np.zeros(symbols.shape, dtype=np.int64)
    words, states = rans.encode(symbols + table.first, choice, [table])
    ideal = float(table.code_lengths()[symbols].sum())
    assert 16 * len(words) + 32 * len(states) <= 1.001 * ideal + 64 * rans.LANES


def counted(values):
    first = int(values.min())
    return from_counts(first, np.bincount(values.reshape(-1).astype(np.int64) - first))


@pytest.mark.parametrize("bits", [0.1, 2.0, 4.0, 6.5])
def test_on_a_long_message_lanes_cost_next_to_nothing(bits):
    spread = 2**bits / np.sqrt(2 * np.pi * np.e)
    values = np.rint(np.random.default_rng(1).normal(size=(64, 1024, 16)) * spread)
    symbols = values.astype(np.int16)
    classes = Classes.by_column(np.zeros(64, dtype=np.uint8), 1024)
    table = counted(symbols)
    symbols = symbols.clip(table.first, table.last)
    tables = EncodingTables([table], np.zeros((1, 16), dtype=np.int64))
    # The kernel equals the oracle (tests/kernels) and is faster here.
    words, _ = rans_numba.encode_tile(symbols, classes, tables)
    ideal = float(table.code_lengths()[symbols.astype(int) - table.first].sum())
    assert 16 * len(words) <= 1.001 * ideal
    assert 16 * len(words) + 32 * 16 >= ideal


def test_constriction_gives_the_same_symbols_and_size():
    constriction = pytest.importorskip("constriction")
    count = 2**18
    values = np.rint(np.random.default_rng(2).normal(size=(64, 256, 16)) * 4).astype(np.int16)
    classes = Classes.by_column(np.zeros(64, dtype=np.uint8), 256)
    table = counted(values)
    values = values.clip(table.first, table.last)
    tables = EncodingTables([table], np.zeros((1, 16), dtype=np.int64))
    words, _ = rans_numba.encode_tile(values, classes, tables)

    model = constriction.stream.model.Categorical(
        (table.frequencies / 4096).astype(np.float32), perfect=False
    )
    message = values.reshape(-1).astype(np.int32) - np.int32(table.first)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(message, model)
    compressed = coder.get_compressed()
    decoded = constriction.stream.stack.AnsCoder(compressed).decode(model, count)
    assert np.array_equal(decoded, message)
    assert 16 * len(words) == pytest.approx(32 * len(compressed), rel=1e-3)


@pytest.fixture
def coded():
    symbols = np.random.default_rng(3).integers(0, 2, (200, 16))
    choice = np.zeros_like(symbols)
    words, states = rans.encode(symbols, choice, [HALVES])
    assert len(words) == 192
    return words, states, choice


def test_too_few_words_raise(coded):
    words, states, choice = coded
    with pytest.raises(BitstreamError, match="lane 15 wants a word at step 184, the tile has 191"):
        rans.decode(words[:-1], states, choice, [HALVES])


def test_too_many_words_raise(coded):
    words, states, choice = coded
    with pytest.raises(BitstreamError, match="tile ends after word 192, its index says 193"):
        rans.decode(np.append(words, words[:1]), states, choice, [HALVES])


def test_a_lane_that_ends_elsewhere_raises():
    one = np.ones((1, 16), dtype=np.int64)
    words, states = rans.encode(one, np.zeros_like(one), [HALVES])
    states[3] += 4096  # the same symbol and no words, but more left over
    with pytest.raises(BitstreamError, match="lane 3 ends at state 67584, wanted 65536"):
        rans.decode(words, states, np.zeros_like(one), [HALVES])
