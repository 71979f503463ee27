import pytest
import torch

from nwc.errors import ConfigError
from nwc.methods.base import LayerWeight
from nwc.methods.rtn import RTN, Grid, round_in_groups


def test_grid_by_hand():
    # 2 bits from -1 to 2: a step of 1, zero at code 1.
    grid = Grid.of(torch.tensor([[-1.0, 2.0]]), 2)
    assert (grid.scale.item(), grid.zero.item()) == (1.0, 1.0)
    assert grid.round(torch.tensor([[-3.0, -0.4, 0.6, 9.0]])).tolist() == [[-1.0, 0.0, 1.0, 2.0]]


def test_constant_and_dead_rows():
    W = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    torch.testing.assert_close(round_in_groups(W, 4), W, rtol=1e-3, atol=0)


def test_groups_are_apart():
    W = torch.randn(4, 300)
    W[:, 130] = 1000
    found = round_in_groups(W, 4)
    assert (found[:, :128] - W[:, :128]).abs().max() < 0.5


def test_every_value_is_within_half_a_step():
    W = torch.randn(16, 128)
    step = (W.amax(1) - W.amin(1)) / 255
    assert ((round_in_groups(W, 8) - W).abs() <= 0.51 * step[:, None] + 1e-3).all()


@pytest.mark.parametrize(("asked", "bits"), [(4, 4), (4.6, 4), (4.7, 5), (2, 2), (8, 8)])
def test_nearest_setting(asked, bits):
    assert RTN(asked).setting.bits == bits


def test_far_from_every_setting():
    with pytest.raises(ConfigError, match="no setting near 12 bits"):
        RTN(12)


def test_bits_count_scales_and_zeros():
    found = RTN(4).quantise([LayerWeight(name="a", W=torch.randn(8, 256))], None)[0]
    assert 8 * found.budget.total / (8 * 256) == 4.15625
