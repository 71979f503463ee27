import pytest
import torch

from nwc.methods.base import LayerWeight
from nwc.methods.gptq import gptq
from nwc.methods.quip_sharp import SCALES, QuipSharp, to_lattice
from nwc.numerics.ldlq import proxy_loss


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


@pytest.mark.parametrize("bits", SCALES)
def test_gaussian_error_is_between_the_bound_and_the_best_scalar_quantiser(bits):
    lloyd_max = {2: 0.1175, 3: 0.03454, 4: 0.009497}
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(3))
    error = float((to_lattice(x, bits, 1 / 0.9) - x).square().mean() / x.square().mean())
    assert 4.0**-bits < error < 0.95 * lloyd_max[bits]


def test_residuals_help():
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(4))
    errors = [float((to_lattice(x, bits) - x).square().mean()) for bits in SCALES]
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]


@pytest.mark.parametrize(("bits", "share"), [(2, 0.6), (3, 0.95)])
def test_better_than_gptq(bits, share):
    W, H = problem(48, 128)
    found = QuipSharp(bits).quantise([LayerWeight(name="a", W=W)], H)[0].weight
    assert proxy_loss(W - found, H) < share * proxy_loss(W - gptq(W, H, bits), H)


@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (20, 9)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_any_shape(shape, calibrated):
    W, H = problem(*shape)
    found = QuipSharp(4).quantise([LayerWeight(name="a", W=W)], H if calibrated else None)[0]
    assert found.weight.shape == W.shape
    assert (found.weight - W).norm() < 0.4 * W.norm() + 0.1
    assert found.budget.total == shape[0] * -(-shape[1] // 8) * 8 // 2 + 12


def test_true_bits_of_a_large_matrix():
    budget = (
        QuipSharp(2).quantise([LayerWeight(name="a", W=torch.randn(256, 512))], None)[0].budget
    )
    assert 8 * budget.total / (256 * 512) == pytest.approx(2, abs=0.001)


def test_heavy_tails_widen_the_scale():
    method = QuipSharp(4)
    gaussian = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    heavy = gaussian * gaussian.abs()
    for x, wider in ((gaussian, False), (heavy, True)):
        rms = float(x.square().mean().sqrt())
        assert (method._scale(x) > 1.1 * rms) is wider
    whole = method._scale(heavy)
    error = (whole * method.quantise_gaussian(heavy / whole) - heavy).square().mean()
    rms = heavy.square().mean().sqrt()
    assert error < 0.7 * (rms * method.quantise_gaussian(heavy / rms) - heavy).square().mean()
