import pytest
import torch

from nwc.calibration.importance import importance_levels


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
