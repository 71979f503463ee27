import pytest
import torch
from torch import nn

from nwc.methods.latent_codebook import Fit, LatentCodebook, first_codebook, fit_autoencoder
from nwc.quantizers.vector import nearest


def sample(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 20, 2, generator=generator).cumsum(-1)


def codebook(x, size=8, fit=None):
    generator = torch.Generator().manual_seed(1)
    return first_codebook(x.flatten(0, 1), size, fit or Fit(), generator)


class Scaled(nn.Module):
    """x times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


def test_the_gradient_passes_the_choice_straight_through():
    x = sample()
    model = LatentCodebook(Scaled(1.0), Scaled(1.0), codebook(x), torch.float32)
    found, distance = model(x)
    chosen = model.codebook[nearest(x.flatten(0, 1), model.codebook)].view_as(x)
    torch.testing.assert_close(found, chosen)
    torch.testing.assert_close(distance, (chosen - x).square().mean())
    (found * 3).sum().backward()
    # d/da of sum(3 a x) at a = 1, as if nothing had been chosen.
    torch.testing.assert_close(model.encoder.factor.grad, 3 * x.sum(), rtol=1e-4, atol=1e-2)


def test_without_steps_it_is_k_means():
    x = sample()
    values = codebook(x)
    model = LatentCodebook(nn.Identity(), nn.Identity(), values, torch.float32)
    found = fit_autoencoder(x, model, Fit(steps=0), torch.Generator())
    wanted = values.half().float()
    torch.testing.assert_close(found, wanted[nearest(x.flatten(0, 1), wanted)].view_as(x))


def test_a_decoder_that_is_off_is_learned():
    x = sample()
    values = codebook(x)
    model = LatentCodebook(nn.Identity(), Scaled(0.5), values, torch.float16)
    generator = torch.Generator().manual_seed(0)
    fit = Fit(steps=200, learning_rate=0.01, batch_weights=400)
    found = fit_autoencoder(x, model, fit, generator)
    best = values[nearest(x.flatten(0, 1), values)].view_as(x)
    assert (found - x).square().mean() < 1.05 * (best - x).square().mean()


def test_what_does_harm_is_not_kept():
    x = sample()
    model = LatentCodebook(Scaled(1.0), Scaled(1.0), codebook(x), torch.float32)
    start = model.restore(x, 10)
    found = fit_autoencoder(x, model, Fit(steps=5, learning_rate=50.0), torch.Generator())
    assert torch.equal(found, start)


def test_a_file_holds_fp16():
    x = sample()
    model = LatentCodebook(nn.Identity(), Scaled(1 + 2**-12), codebook(x), torch.float16)
    found = model.restore(x, 7)
    values = model.codebook.detach().half().float()
    assert torch.isin(found, values).all()


@pytest.mark.parametrize("size", [1, 3, 1280])
def test_first_codebooks(size):
    assert codebook(sample(), size, Fit(rounds=2)).shape == (size, 2)
