import numpy as np
import pytest

from nwc.coding.census import Cell
from nwc.coding.tables import PATCH_BITS, FrequencyTable
from nwc.methods.code_lengths import FIRST_SYMBOL, SYMBOLS, counted, of_tables

EVEN = FrequencyTable(-1, np.array([1024, 2048, 1024]))
ODD = FrequencyTable(0, np.array([4096]))


def test_lengths_of_tables():
    lengths = of_tables([[EVEN, ODD]])
    assert lengths.shape == (1, 2, SYMBOLS)
    assert lengths[0, 0, -1 - FIRST_SYMBOL : 2 - FIRST_SYMBOL].tolist() == [2, 1, 2]
    assert lengths[0, 1, -FIRST_SYMBOL] == 0
    assert lengths[0, 0, 2 - FIRST_SYMBOL] == PATCH_BITS


def test_counts_outweigh_the_prior():
    prior = of_tables([[EVEN, ODD]])
    counts = np.array([10**6, 10**6])
    lengths = counted(prior, [Cell(0, 0, 1, counts)])
    seen = lengths[0, 0, 1 - FIRST_SYMBOL : 3 - FIRST_SYMBOL]
    assert seen == pytest.approx([1, 1], abs=1e-3)
    # What was expected and did not come costs more than before, and no more than a patch.
    assert 2 < lengths[0, 0, -1 - FIRST_SYMBOL] <= PATCH_BITS
    np.testing.assert_array_equal(lengths[0, 1], prior[0, 1])


def test_without_counts_the_prior_stays():
    prior = of_tables([[EVEN, ODD]])
    lengths = counted(prior, [Cell(0, 0, 0, np.array([0]))])
    np.testing.assert_allclose(lengths, prior, atol=1e-9)


def test_symbols_beyond_all_places_are_passed_over():
    prior = of_tables([[EVEN, ODD]])
    far = Cell(0, 0, FIRST_SYMBOL - 2, np.array([5, 5, 0]))
    np.testing.assert_allclose(counted(prior, [far]), prior, atol=1e-9)
    beyond = Cell(0, 0, FIRST_SYMBOL + SYMBOLS + 4, np.array([5]))
    np.testing.assert_allclose(counted(prior, [beyond]), prior, atol=1e-9)
