import pytest
import torch

from nwc.codec.entropy_bottleneck import EntropyBottleneck


@pytest.fixture
def density():
    torch.manual_seed(0)
    density = EntropyBottleneck(3, scale=2.0)
    with torch.no_grad():
        for factor in density.factors:
            factor.normal_()
    return density


@pytest.mark.parametrize("gain", [0.5, 1.0, 8.0])
def test_likelihoods_of_the_integers_sum_to_one(density, gain):
    z = torch.arange(-2000.0, 2001).expand(3, -1)
    p = density.likelihood(z, gain).double()
    assert (p > 0).all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(3, dtype=p.dtype), atol=1e-3, rtol=0)


def test_cumulative_distribution_rises(density):
    x = torch.linspace(-50, 50, 1001).expand(3, -1)
    assert (density.logits(x).diff(dim=1) > 0).all()


def test_every_parameter_learns(density):
    density.likelihood(torch.randn(3, 100)).log().sum().backward()
    for name, parameter in density.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_a_density():
    torch.manual_seed(0)
    density = EntropyBottleneck(1)
    optimizer = torch.optim.Adam(density.parameters(), lr=0.02)
    for _ in range(300):
        loss = -density.likelihood(3 * torch.randn(1, 2000)).log2().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The differential entropy of a normal of deviation 3, which noise of width 1 hardly widens.
    assert loss.item() == pytest.approx(0.5 * torch.log2(torch.tensor(17.08 * 9)).item(), abs=0.08)
