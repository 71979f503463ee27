import numpy as np
import pytest

from nwc.coding import tiling
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import Classes, DecodingTables
from nwc.errors import ConfigError
from nwc.kernels import backend, native_library, rans_native, rans_numba

TABLES = DecodingTables(
    [FrequencyTable(0, np.array([1024, 3072]))], np.zeros((1, 16), dtype=np.int64)
)
SYMBOLS = np.random.default_rng(0).integers(0, 2, (6, 9, 16)).astype(np.int16)
CLASSES = Classes.by_column(np.zeros(6, dtype=np.uint8), 9)


@pytest.fixture
def library_missing(monkeypatch):
    missing = native_library.Loaded(None, "libnwc.so was not built when nwc was installed")
    monkeypatch.setattr(native_library, "load", lambda: missing)


def test_numba_is_the_default_without_a_library(monkeypatch, library_missing):
    monkeypatch.delenv("NWC_BACKEND", raising=False)
    assert backend.backend() == "numba"
    assert backend._DECODERS["numba"] is rans_numba.decode_tile
    assert backend._ENCODERS["numba"] is rans_numba.encode_tile


def test_native_is_the_default_with_one(monkeypatch):
    monkeypatch.delenv("NWC_BACKEND", raising=False)
    monkeypatch.setattr(native_library, "available", lambda: True)
    assert backend.backend() == "native"
    assert backend._DECODERS["native"] is rans_native.decode_tile


def test_native_asked_for_without_a_library_says_why(monkeypatch, library_missing):
    monkeypatch.setenv("NWC_BACKEND", "native")
    with pytest.raises(ConfigError, match=r"was not built.*C compiler.*NWC_BACKEND=numba"):
        backend.decode_tile(None, None, CLASSES, TABLES)


def test_an_unknown_level_lists_the_known(monkeypatch):
    monkeypatch.setenv("NWC_NATIVE_LEVEL", "sse9")
    with pytest.raises(ConfigError, match=r"NWC_NATIVE_LEVEL is 'sse9', wanted one of \['plain'"):
        native_library.level()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "was not built"), (b"not a library", "cannot be loaded")],
)
def test_a_library_that_cannot_be_used_gives_its_reason(monkeypatch, tmp_path, content, reason):
    path = tmp_path / "libnwc.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(native_library, "LIBRARY", path)
    loaded = native_library.load.__wrapped__()
    assert loaded.library is None
    assert reason in loaded.reason


def test_an_unknown_backend_lists_the_known(monkeypatch):
    monkeypatch.setenv("NWC_BACKEND", "cuda")
    message = r"NWC_BACKEND is 'cuda', wanted one of \['native', 'numba', 'numpy'\]"
    with pytest.raises(ConfigError, match=message):
        backend.encode_tile(SYMBOLS, CLASSES, TABLES)


BACKENDS = ["numba", "numpy", *(["native"] if native_library.available() else [])]


@pytest.mark.parametrize("name", BACKENDS)
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
    for name in BACKENDS:
        monkeypatch.setenv("NWC_BACKEND", name)
        found_words, found_states = backend.encode_tile(SYMBOLS, CLASSES, TABLES)
        assert np.array_equal(found_words, words)
        assert np.array_equal(found_states, states)
