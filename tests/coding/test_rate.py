import numpy as np
import pytest

from nwc.coding import bitstream
from nwc.coding.bitstream import Bitstream
from nwc.coding.container import Section
from nwc.coding.rate import BitBudget, budget, ideal_bits
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes
from nwc.kernels import rans_numba

ROWS = 40
TABLE = FrequencyTable(-2, np.array([256, 1024, 1536, 1024, 256]))


@pytest.fixture(scope="module")
def symbols():
    rng = np.random.default_rng(0)
    values = rng.choice(np.arange(-2, 3), p=TABLE.frequencies / 4096, size=(24, 3, 16))
    values[5, 1, 7] = 99
    return values.astype(np.int16)


@pytest.fixture(scope="module")
def classes():
    return (np.arange(24) % 2).astype(np.uint8)


@pytest.fixture(scope="module")
def stream(symbols, classes):
    extra = {Section.SCALES_F16: bytes(52), Section.GAIN: bytes(4), Section.ERRORS: bytes(12)}
    tables = [[TABLE], [TABLE]]
    both = Classes.by_column(classes, 3)
    return Bitstream(bitstream.encode(symbols, both, tables, rows=ROWS, extra=extra))


def test_a_budget_counts_every_byte_once(stream):
    found = budget(stream)
    assert found.total == len(stream.container.view)
    assert found.payload == 2 * stream.head.words
    assert found.index == 72 * len(stream.tiles)
    assert (found.patches, found.scales, found.codec) == (8, 52, 0)
    sections = stream.container.sections
    assert found.levels == len(sections[Section.CLASSES])
    assert found.tables == len(sections[Section.TABLES]) + len(sections[Section.TABLE_MAP])
    # head, section table, checksums, and the two sections of no purpose of their own
    assert found.headers == 36 + 8 * len(sections) + 4 + 8 + 4 + 12


def test_budgets_add_up():
    total = BitBudget(payload=3, tables=1) + BitBudget(payload=1, codec=5)
    assert total == BitBudget(payload=4, tables=1, codec=5)
    assert total.total == 10


def test_bits_per_parameter():
    each = BitBudget(payload=10, index=5).bits_per(40)
    assert each["payload"] == 2
    assert each["index"] == 1
    assert sum(each.values()) == 3
    assert BitBudget(payload=1).bits_per(0)["payload"] == 8  # nothing compressed is no error


@pytest.mark.parametrize("decoder", [rans_numba.decode_tile, None])
def test_ideal_bits_are_those_of_the_coded_symbols(stream, symbols, decoder):
    coded = symbols.copy()
    coded[5, 1, 7] = TABLE.mode
    wanted = TABLE.code_lengths()[coded + 2].sum()
    found = ideal_bits(stream) if decoder is None else ideal_bits(stream, decoder)
    assert found == pytest.approx(wanted)
    assert 16 * stream.head.words == pytest.approx(found, abs=16 * 32)
