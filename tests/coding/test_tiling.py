import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nwc.coding.rans import LANES
from nwc.coding.tables import FrequencyTable
from nwc.coding.tiling import (
    MAX_TILE,
    PROFILES,
    Classes,
    DecodingTables,
    EncodingTables,
    decode_tile,
    encode_tile,
    tile_origins,
    tile_shape,
)

SIZES = st.one_of(st.integers(1, 20), st.integers(1, 20_000))


@given(SIZES, SIZES, st.sampled_from(sorted(PROFILES)))
def test_a_tile_fits_matrix_profile_and_decoder(chunks, columns, name):
    profile = PROFILES[name]
    tile_chunks, tile_columns = tile_shape(chunks, columns, profile)
    assert 1 <= tile_chunks <= min(chunks, profile.rows // LANES)
    assert 1 <= tile_columns <= columns
    weights = tile_chunks * tile_columns * LANES
    assert weights <= MAX_TILE
    if chunks * LANES * columns > profile.small:
        assert weights <= max(profile.weights, tile_chunks * LANES)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("balanced", (256, 16)), ("archive", (256, 64)), ("latency", (256, 4))],
)
def test_shapes_of_the_profiles(name, shape):
    assert tile_shape(256, 4096, PROFILES[name]) == shape


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_tiles_cover_the_matrix_once(chunks, columns, tile_chunks, tile_columns):
    times = np.zeros((columns, chunks), dtype=int)
    origins = tile_origins(chunks, columns, tile_chunks, tile_columns)
    for column, chunk in origins:
        times[column : column + tile_columns, chunk : chunk + tile_chunks] += 1
    assert (times == 1).all()
    assert origins == sorted(origins)  # columns first, then down


def test_a_tile_takes_the_table_of_each_class_and_lane():
    # Constant tables: what is decoded shows which table was used, and nothing needs a word.
    tables = [FrequencyTable(first, np.array([4096])) for first in range(32)]
    choice = np.arange(32).reshape(2, LANES)
    columns = np.array([1, 0, 1], dtype=np.uint8)
    symbols = np.repeat(choice[columns][:, None, :], 4, axis=1).astype(np.int16)
    classes = Classes.by_column(columns, 4)
    words, states = encode_tile(symbols, classes, EncodingTables(tables, choice))
    assert len(words) == 0
    found = decode_tile(words, states, classes, DecodingTables(tables, choice))
    assert found.dtype == np.int16
    assert np.array_equal(found, symbols)
