import pytest
import torch

from nwc.errors import ConfigError
from nwc.quantizers import vector


def points(count, d, seed=0):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed))


def error(x, values):
    return float((x - values[vector.nearest(x, values)]).square().mean())


def test_nearest_is_nearest():
    x, values = points(1000, 3), points(17, 3, seed=1)
    assert torch.equal(vector.nearest(x, values), torch.cdist(x, values).argmin(1))


def test_batches_change_nothing(monkeypatch):
    x, values = points(1000, 2), points(16, 2, seed=1)
    whole = vector.nearest(x, values)
    monkeypatch.setattr(vector, "_BATCH", 100)
    assert torch.equal(vector.nearest(x, values), whole)


def test_every_round_lowers_the_error():
    x = points(4000, 2)
    values, before = x[:32], 1e9
    for _ in range(5):
        values = vector.k_means(x, values, rounds=1)
        assert error(x, values) <= before + 1e-6
        before = error(x, values)


def test_clusters_are_found():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (centres[:, None] + 0.1 * points(300, 2).view(3, 100, 2)).flatten(0, 1)
    # Two of three start in one cluster, and one of them nowhere near.
    values = vector.k_means(x, torch.tensor([[0.0, 0.0], [9.0, 1.0], [99.0, 99.0]]), rounds=20)
    assert error(x, values) < 0.02


def test_the_guess_is_left_alone():
    x = points(50, 2)
    start = x[:4].clone()
    vector.k_means(x, start, rounds=2)
    assert torch.equal(start, x[:4])


def test_two_dimensions_beat_one():
    # 0.1175 is the least error of a scalar quantiser of 2 bits.
    x = points(2**15, 2)
    levels = torch.tensor([-1.51, -0.4528, 0.4528, 1.51])
    values = vector.k_means(x, torch.cartesian_prod(levels, levels), rounds=60)
    assert error(x, values) < 0.112


@pytest.mark.parametrize("count", [0, 6])
def test_more_values_than_points_are_refused(count):
    with pytest.raises(ConfigError, match="points"):
        vector.k_means(points(5, 2), points(count, 2))
