import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.errors import ConfigError
from nwc.quantizers import scalar

# Evenly spread quantiles: a sample without noise.
NORMAL = torch.special.ndtri((torch.arange(2**19).double() + 0.5) / 2**19).numpy()


@pytest.mark.parametrize(("bits", "mse"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_of_a_gaussian(bits, mse):
    # Max 1960, Table I.
    values = scalar.lloyd_max(NORMAL, 2**bits, tolerance=1e-8)
    found = np.square(NORMAL - scalar.nearest(NORMAL, values).restored).mean()
    assert found == pytest.approx(mse, rel=0.005)


def test_lloyd_max_of_two_values():
    values = scalar.lloyd_max(NORMAL, 2)
    assert values == pytest.approx([-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)], rel=2e-3)


def test_lloyd_max_with_a_value_for_every_sample_is_exact():
    x = np.array([3.0, 1.0, 7.0])
    assert scalar.nearest(x, scalar.lloyd_max(x, 3)).restored == pytest.approx(x)


@pytest.mark.parametrize("levels", [0, 5])
def test_lloyd_max_wants_samples(levels):
    with pytest.raises(ConfigError, match="levels"):
        scalar.lloyd_max(np.zeros(4), levels)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 20))
def test_nearest_is_nearest(seed, levels):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.standard_normal(levels))
    x = rng.standard_normal(50)
    found = scalar.nearest(x, values)
    assert np.abs(x - found.restored) == pytest.approx(np.abs(x[:, None] - values).min(1))
    assert np.array_equal(values[found.indices], found.restored)


def test_uniform_quantisation_loses_a_quarter_of_a_bit():
    # Gish and Pierce 1968: log2(pi e / 6) / 2 = 0.2546 at high rate.
    found = scalar.uniform(NORMAL, 0.05)
    mse = np.square(NORMAL - found.restored).mean()
    assert mse == pytest.approx(0.05**2 / 12, rel=0.01)
    gap = scalar.entropy(found.indices) + 0.5 * math.log2(mse)
    assert gap == pytest.approx(0.2546, abs=0.002)


def test_entropy_of_what_occurs():
    assert scalar.entropy(np.array([5, 5, 5])) == 0
    assert scalar.entropy(np.array([0, 0, 0, 9])) == pytest.approx(
        0.25 * 2 + 0.75 * math.log2(4 / 3)
    )


@pytest.mark.parametrize("step", [0.25, 1.0, 2.0])
def test_entropy_constrained_beats_uniform(step):
    plain, better = scalar.uniform(NORMAL, step), scalar.entropy_constrained(NORMAL, step)
    gaps = []
    for found in (plain, better):
        mse = np.square(NORMAL - found.restored).mean()
        gaps.append(scalar.entropy(found.indices) + 0.5 * math.log2(mse))
    # At high rate nothing is left to gain.
    assert gaps[1] < gaps[0] + 1e-4
    if step >= 1:
        assert gaps[1] < gaps[0] - 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.7, 3.0]))
def test_every_sample_takes_the_cheapest_value(seed, step):
    x = np.random.default_rng(seed).laplace(size=200)
    values = np.array([-2.1, -0.9, 0.1, 1.0, 2.5])
    lengths = np.random.default_rng(seed + 1).uniform(0, step, 5)
    ordered = np.sort(x)
    edges = scalar._cheapest_cells(values, lengths, ordered)
    costs = np.square(ordered[:, None] - values) + lengths
    for low, high in itertools.pairwise(edges):
        assert len(set(costs[low:high].argmin(1))) == 1
    assert len(edges) - 1 == len(set(costs.argmin(1)))


def test_order_of_samples_does_not_matter():
    x = np.random.default_rng(1).standard_normal(1000)
    order = np.random.default_rng(2).permutation(1000)
    for quantise in (scalar.uniform, scalar.entropy_constrained):
        assert np.array_equal(quantise(x[order], 0.5).restored, quantise(x, 0.5).restored[order])
