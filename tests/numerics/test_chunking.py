import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.numerics.chunking import chunk_count, column_scales, from_chunks, to_chunks


@settings(deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([1e-30, 1, 1e30])
)
def test_round_trip_of_any_shape_and_magnitude(m, n, seed, magnitude):
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * magnitude
    scales = column_scales(W)
    chunks = to_chunks(W, scales)
    assert chunks.shape == (n, chunk_count(m), 16)
    torch.testing.assert_close(from_chunks(chunks, scales, m), W, rtol=1e-5, atol=0)
    # Normalised columns have unit mean square, at every magnitude.
    square = chunks.flatten(1)[:, :m].square().mean(dim=1)
    torch.testing.assert_close(square, torch.ones(n), rtol=1e-4, atol=1e-4)


def test_dead_columns_stay_dead():
    W = torch.randn(20, 3)
    W[:, 1] = 0
    scales = column_scales(W)
    chunks = to_chunks(W, scales)
    assert scales[1] == 0
    assert not chunks[1].any()
    assert not from_chunks(chunks, scales, 20)[:, 1].any()


def test_chunks_run_down_the_columns():
    W = torch.arange(64.0).view(32, 2)
    chunks = to_chunks(W, torch.ones(2))
    assert chunks[1, 1].tolist() == W[16:, 1].tolist()


@pytest.mark.parametrize("m", [1, 15, 16, 17])
def test_the_last_chunk_is_padded_with_zeros(m):
    chunks = to_chunks(torch.ones(m, 2), torch.ones(2))
    assert chunks.sum() == 2 * m


def test_subnormal_columns_are_dead():
    W = torch.full((16, 2), 1e-39)
    W[:, 1] = 2e-38
    scales = column_scales(W)
    assert scales[0] == 0
    assert scales[1] > 0
    assert torch.isfinite(to_chunks(W, scales)).all()
