import pytest
import torch

from nwc.calibration.importance import FLOOR, importance_levels, waterfilled_levels


@pytest.mark.parametrize("n", [1000, 4096])
def test_quantiles_of_the_paper(n):
    levels = importance_levels(torch.rand(n, generator=torch.Generator().manual_seed(0)), 4)
    shares = torch.bincount(levels, minlength=4) / n
    torch.testing.assert_close(shares, torch.tensor([0.9, 0.09, 0.009, 0.001]), atol=2 / n, rtol=0)


def test_ties_and_outliers_do_not_move_thresholds():
    flat = importance_levels(torch.ones(1000), 4)
    assert torch.bincount(flat).tolist() == [900, 90, 9, 1]
    spiky = torch.rand(1000)
    spiky[17] = 1e30
    levels = importance_levels(spiky, 4)
    assert levels[17] == 3
    assert torch.bincount(levels).tolist() == [900, 90, 9, 1]


def test_fewer_levels_and_small_layers():
    assert importance_levels(torch.rand(1000), 2).max() == 1
    assert importance_levels(torch.rand(5), 1).tolist() == [0] * 5
    assert importance_levels(torch.rand(1), 4).tolist() == [0]


def test_waterfilling_equalises_contributions():
    generator = torch.Generator().manual_seed(0)
    scales, d = torch.rand(2, 500, generator=generator) + 0.1
    level = waterfilled_levels(scales, d, 16).float()
    weight = d + FLOOR * d.mean()
    contribution = torch.log2(scales) + 0.5 * torch.log2(weight) - level / 2
    assert contribution.max() - contribution.min() <= 0.5 + 1e-4
    assert level.min() == 0
    # Only ratios matter.
    assert torch.equal(level, waterfilled_levels(8 * scales, d / 5, 16).float())


def test_quiet_inputs_are_not_left_out():
    d = torch.tensor([1.0, 1e-9])
    assert waterfilled_levels(torch.ones(2), d, 16).tolist() == [4, 0]


def test_waterfilling_of_equals_is_flat():
    assert not waterfilled_levels(torch.full((9,), 3.0), torch.full((9,), 2.0), 16).any()


def test_waterfilling_keeps_the_important_end_of_a_wide_span():
    scales = 2.0 ** (torch.arange(40) / 2)  # half an octave of gain apart
    level = waterfilled_levels(scales, torch.ones(40), 16)
    assert level.tolist() == [0] * 24 + list(range(16))


def test_dead_columns_have_level_0():
    level = waterfilled_levels(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3), 16)
    assert level.tolist() == [0, 0, 2]
    assert waterfilled_levels(torch.zeros(3), torch.ones(3), 16).tolist() == [0, 0, 0]
    assert waterfilled_levels(torch.rand(3), torch.rand(3), 1).tolist() == [0, 0, 0]


def test_dead_columns_do_not_raise_the_floor():
    scales, d = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.1, 1e9])
    assert waterfilled_levels(scales, d, 16).tolist() == [3, 0, 0]
