import math

import numpy as np
import pytest

from nwc.errors import ConfigError
from nwc.numerics.statistics import (
    blahut_arimoto,
    gaussian_rate,
    histogram,
    laplace_entropy,
    rate_curve,
    shannon_lower_bound,
)

GAUSSIAN_ENTROPY = 0.5 * math.log2(2 * math.pi * math.e)


def on_grid(density, reach):
    def probabilities(spacing):
        half = math.ceil(reach / spacing)
        p = density(np.arange(-half, half + 1) * spacing)
        return p / p.sum()

    return probabilities


gaussian = on_grid(lambda x: np.exp(-0.5 * x * x), 9)
laplace = on_grid(lambda x: np.exp(-math.sqrt(2) * np.abs(x)), 20)


def test_bounds_agree_on_a_gaussian():
    for mse in (0.5, 0.1, 0.001):
        assert shannon_lower_bound(GAUSSIAN_ENTROPY, mse) == pytest.approx(gaussian_rate(mse))
    assert gaussian_rate(2.0) == 0
    assert gaussian_rate(1.0, variance=4.0) == 1


def test_entropy_of_laplace():
    x = np.linspace(-40, 40, 800_001)
    p = np.exp(-np.abs(x)) / 2
    entropy = -(p * np.log2(p)).sum() * (x[1] - x[0])
    assert laplace_entropy(2.0) == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize("mse", [0.8, 0.25, 0.01, 0.0003])
def test_gaussian_in_closed_form(mse):
    spacing = math.sqrt(mse) / 4
    point = blahut_arimoto(gaussian(spacing), spacing, 0.5 / mse)
    assert point.mse == pytest.approx(mse, rel=1e-3)
    assert point.rate == pytest.approx(gaussian_rate(point.mse), abs=1e-4)
    assert point.slack >= 0
    if mse < 0.5:
        assert point.slack < 0.003


@pytest.mark.parametrize("mse", [0.4, 0.06, 0.004, 0.0003])
def test_laplace_between_its_bounds(mse):
    spacing = math.sqrt(mse) / 16
    point = blahut_arimoto(laplace(spacing), spacing, 0.5 / mse)
    above = point.rate - shannon_lower_bound(laplace_entropy(), point.mse)
    assert above > -1e-3
    assert point.rate < gaussian_rate(point.mse)
    if mse < 0.1:
        # The lower bound is reached at high rate.
        assert above < 1e-3


def test_two_values_need_at_most_a_bit():
    p = np.zeros(101)
    p[[40, 60]] = 0.5
    point = blahut_arimoto(p, 0.1, 50.0)
    assert point.rate == pytest.approx(1, abs=1e-3)
    assert point.mse == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("p", "spacing"), [(np.full(9, 1 / 9), 9.0), (np.ones(9), 0.1), (np.eye(9)[4] * -1, 0.1)]
)
def test_wrong_use(p, spacing):
    with pytest.raises(ConfigError):
        blahut_arimoto(p, spacing, 1.0)


def test_curve_between_its_points():
    curve = rate_curve(gaussian, np.arange(-8.0, -1.0))
    for mse in (0.2, 0.1, 0.02):
        assert curve.rate(mse) == pytest.approx(gaussian_rate(mse), abs=1e-3)
    assert math.isnan(curve.rate(1e-9))
    assert curve.slack.max() < 0.003


def test_curve_of_samples():
    x = np.random.default_rng(0).standard_normal(2**17)
    curve = rate_curve(lambda spacing: histogram(x, spacing), np.array([-6.0, -4.0, -2.0]))
    assert curve.rate(0.05) == pytest.approx(gaussian_rate(0.05), abs=0.01)
