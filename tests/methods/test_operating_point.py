import numpy as np
import pytest
import torch

from nwc.codec.config import DEFAULT, MAX_LOG2_GAIN
from nwc.codec.model import WeightCodec
from nwc.coding.container import Section
from nwc.methods.operating_point import FLOOR, natural_gain, normalised, waterfilled
from nwc.numerics.chunking import column_scales


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps(point):
    """Step of every weight [m, n], as a reader gets it."""
    m = len(point.row_scales)
    level = torch.from_numpy(point.classes.full().reshape(len(point.scales), -1)[:, :m].T.copy())
    gain = WeightCodec(DEFAULT).level_log2_gain(level.long(), point.log2_gain)
    return point.row_scales[:, None] * point.scales * torch.exp2(-gain)


def importances(n, m, seed=1):
    d = torch.exp2(2 * random(n, seed=seed))
    g = torch.exp2(random(m, seed=seed + 1))
    return d, g


@pytest.mark.parametrize("rows", [True, False])
def test_every_weight_contributes_the_same(rows):
    W = random(40, 60)
    d, g = importances(60, 40)
    point = waterfilled(W, d, g if rows else None, 2.0)
    weight = (d + FLOOR * d.mean())[None] * torch.ones(40, 1)
    if rows:
        weight = weight * (g + FLOOR * g.mean())[:, None]
    contribution = (steps(point) * weight.sqrt()).log2()
    # Column and row are each rounded to a quarter octave.
    assert contribution.max() - contribution.min() <= (0.51 if rows else 0.26)


@pytest.mark.parametrize("rows", [True, False])
def test_the_mean_gain_is_what_was_asked_for(rows):
    W = random(64, 50, seed=4) * torch.exp2(random(50, seed=5))
    d, g = importances(50, 64)
    point = waterfilled(W, d, g if rows else None, 1.5)
    weighed = W if not rows else W * (g + FLOOR * g.mean()).sqrt()[:, None]
    step = steps(point) if not rows else steps(point) * (g + FLOOR * g.mean()).sqrt()[:, None]
    ratio = column_scales(weighed).log2() - step.log2().mean(0)
    assert float(ratio.mean()) == pytest.approx(1.5, abs=0.05)


def test_a_class_says_how_many_steps_a_weight_spans():
    W = random(256, 128, seed=6) * torch.exp2(random(128, seed=7))
    d, g = importances(128, 256)
    point = waterfilled(W, d / 50, g, 1.0)
    gain = (W.abs() / steps(point)).numpy()
    level = point.classes.full().reshape(128, -1)[:, :256].T
    for k in np.unique(level):
        members = gain[level == k]
        if members.size > 200:
            spread = np.log2(np.sqrt(np.square(members).mean()))
            assert spread == pytest.approx(point.log2_gain + k / 2, abs=0.4)


def test_only_ratios_matter():
    W = random(32, 20)
    d, g = importances(20, 32)
    one, other = waterfilled(W, d, g, 2.0), waterfilled(8 * W, d / 64, 256 * g, 2.0)
    assert np.array_equal(one.classes.columns, other.classes.columns)
    assert np.array_equal(one.classes.rows, other.classes.rows)
    torch.testing.assert_close(8 * steps(one), steps(other))


def test_of_equals_all_are_equal():
    point = waterfilled(torch.ones(16, 9), torch.full((9,), 2.0), torch.ones(16), 3.0)
    assert not point.classes.full().any()
    assert point.log2_gain == pytest.approx(3.0)


def test_quiet_inputs_are_not_left_out():
    d = torch.tensor([1.0, 1e-9])
    column_steps = steps(waterfilled(torch.ones(16, 2), d, None, 2.0))[0]
    assert column_steps[1] / column_steps[0] < 5


def test_dead_columns_and_rows():
    W = random(32, 10)
    W[:, 3] = 0
    W[5] = 0
    d, g = importances(10, 32)
    d[3] = 1e12  # must not raise the floor
    point = waterfilled(W, d, g, 2.0)
    assert point.scales[3] == 0
    assert point.classes.columns[3] == 0
    assert (point.scales[[0, 1, 2, 4]] > 0).all()
    nothing = waterfilled(torch.zeros(8, 4), torch.ones(4), torch.ones(8), 2.0)
    assert not nothing.scales.any()


@pytest.mark.parametrize("gain", [-3.0, 2.0, 4.8, 6.0])
def test_steps_are_as_fine_as_a_table_allows_and_no_finer(gain):
    W = random(128, 64)
    d, g = importances(64, 128)
    point = waterfilled(W, torch.exp2(3 * d.log2()), g, gain)
    assert int(point.classes.columns.max()) + int(point.classes.rows.max()) < 16
    ratio = column_scales(W / point.row_scales[:, None])
    c = (ratio / steps(point)[0] * point.row_scales[0])[ratio > 0].log2()
    assert c.max() <= max(MAX_LOG2_GAIN, gain) + 1.5


def test_scales_are_what_the_stream_holds():
    d, g = importances(12, 20)
    point = waterfilled(random(20, 12), d, g, 2.0)
    assert {Section.SCALES_LOG, Section.ROW_SCALES, Section.GAIN} == set(point.sections)
    assert Section.ROW_SCALES not in waterfilled(random(20, 12), d, None, 2.0).sections
    assert set(normalised(random(20, 12), 2.0).sections) == {Section.SCALES_LOG, Section.GAIN}


def test_the_natural_gain_follows_loudness():
    W = random(48, 24)
    d, g = importances(24, 48)
    base = natural_gain(W, d, g)
    assert natural_gain(2 * W, d, g) == pytest.approx(base + 1, abs=1e-4)
    assert natural_gain(W, 4 * d, g) == pytest.approx(base + 1, abs=1e-4)
    assert natural_gain(W, d, 4 * g) == pytest.approx(base + 1, abs=1e-4)
    assert natural_gain(torch.zeros(4, 4), torch.ones(4), torch.ones(4)) is None
    assert natural_gain(W, d, torch.zeros(48)) is None
