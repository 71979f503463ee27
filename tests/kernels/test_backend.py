import numpy as np
import pytest

from nwc.coding import tiling
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, DecodingTables
from nwc.errors import ConfigError
from nwc.kernels import backend, rans_numba

TABLES = DecodingTables(
    [FrequencyTable(0, np.array([1024, 3072]))], np.zeros((1, 16), dtype=np.int64)
)
SYMBOLS = np.random.default_rng(0).integers(0, 2, (6, 9, 16)).astype(np.int16)
CLASSES = Classes.by_column(np.zeros(6, dtype=np.uint8), 9)


def test_numba_is_the_default(monkeypatch):
    monkeypatch.delenv("NWC_BACKEND", raising=False)
    assert backend.backend() == "numba"
    assert backend._DECODERS["numba"] is rans_numba.decode_tile
    assert backend._ENCODERS["numba"] is rans_numba.encode_tile


def test_an_unknown_backend_lists_the_known(monkeypatch):
    monkeypatch.setenv("NWC_BACKEND", "cuda")
    message = r"NWC_BACKEND is 'cuda', wanted one of \['numba', 'numpy'\]"
    with pytest.raises(ConfigError, match=message):
        backend.encode_tile(SYMBOLS, CLASSES, TABLES)


@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_the_variable_chooses_both_directions(monkeypatch, name):
    called = []

    def spy(registry):
        function = registry[name]

        def call(*arguments):
            called.append(function)
            return function(*arguments)

        monkeypatch.setitem(registry, name, call)
        return function

    chosen = [spy(backend._ENCODERS), spy(backend._DECODERS)]
    monkeypatch.setenv("NWC_BACKEND", name)
    words, states = backend.encode_tile(SYMBOLS, CLASSES, TABLES)
    assert np.array_equal(backend.decode_tile(words, states, CLASSES, TABLES), SYMBOLS)
    assert called == chosen


def test_every_backend_gives_the_same_bytes(monkeypatch):
    words, states = tiling.encode_tile(SYMBOLS, CLASSES, TABLES)
    assert set(backend._ENCODERS) == set(backend._DECODERS)
    for name in backend._ENCODERS:
        monkeypatch.setenv("NWC_BACKEND", name)
        found_words, found_states = backend.encode_tile(SYMBOLS, CLASSES, TABLES)
        assert np.array_equal(found_words, words)
        assert np.array_equal(found_states, states)
