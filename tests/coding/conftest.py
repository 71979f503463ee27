"""Strategies that the tests of the bitstream share."""

import numpy as np
import pytest
from hypothesis import strategies as st

from nwc.coding.tables import FrequencyTable


@st.composite
def _frequencies(draw):
    """1 to 256 frequencies, zeros inside allowed: gaps between sorted marks on a ruler."""
    size = draw(st.one_of(st.sampled_from([1, 2, 3, 256]), st.integers(1, 256)))
    raw = draw(st.binary(min_size=2 * (size - 1), max_size=2 * (size - 1)))
    marks = np.sort(1 + np.frombuffer(raw, dtype="<u2").astype(np.int64) % 4095)
    return np.diff(marks, prepend=0, append=4096)


@pytest.fixture(scope="session")
def frequency_tables():
    """Any table at all, in a range that leaves room for outliers on both sides."""
    return st.builds(FrequencyTable, st.integers(-1000, 1000), _frequencies())
