import pytest
import torch

from nwc.methods.base import LayerWeight
from nwc.methods.gptq import gptq
from nwc.methods.quip_sharp import SCALES, QuIPSharp, to_lattice
from nwc.numerics.ldlq import proxy_loss


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


@pytest.mark.parametrize(("bits", "measured"), [(2, 0.0961), (3, 0.0295), (4, 0.00866)])
def test_gaussian_error(bits, measured):
    # The papers print E8P alone, at its best scale (tests/quantizers/test_lattice.py). These are
    # errors on half a million weights, as wide as in the authors' runs; here, on an eighth.
    lloyd_max = {2: 0.1175, 3: 0.03454, 4: 0.009497}
    x = torch.randn(8000, 8, generator=torch.Generator().manual_seed(3))
    found = to_lattice(x, bits, SCALES[bits].widened)
    error = float((found - x).square().mean() / x.square().mean())
    assert error == pytest.approx(measured, rel=0.02)
    assert 4.0**-bits < error < 0.95 * lloyd_max[bits]


def test_residuals_help():
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(4))
    errors = [float((to_lattice(x, bits) - x).square().mean()) for bits in SCALES]
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]


@pytest.mark.parametrize(("bits", "share"), [(2, 0.4), (3, 0.7), (4, 0.9)])
def test_better_than_gptq(bits, share):
    W, H = problem(48, 128)
    found = QuIPSharp(bits).quantise([LayerWeight(name="a", W=W)], H)[0].weight
    assert proxy_loss(W - found, H) < share * proxy_loss(W - gptq(W, H, bits), H)


def test_sweeps_serve(monkeypatch):
    W, H = problem(48, 128)
    losses = []
    for sweeps in (0, 10):
        monkeypatch.setattr(QuIPSharp, "sweeps", sweeps)
        found = QuIPSharp(2).quantise([LayerWeight(name="a", W=W)], H)[0].weight
        losses.append(proxy_loss(W - found, H))
    assert losses[1] < 0.95 * losses[0]


def test_inputs_that_are_always_zero():
    W, H = problem(16, 32)
    H[:, 5], H[5] = 0, 0
    for each in (H, torch.zeros(32, 32)):
        found = QuIPSharp(2).quantise([LayerWeight(name="a", W=W)], each)[0].weight
        assert found.isfinite().all()
        assert (found - W).norm() < W.norm()


@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (20, 9)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_any_shape(shape, calibrated):
    W, H = problem(*shape)
    found = QuIPSharp(4).quantise([LayerWeight(name="a", W=W)], H if calibrated else None)[0]
    assert found.weight.shape == W.shape
    assert (found.weight - W).norm() < 0.4 * W.norm() + 0.1
    assert found.budget.total == shape[0] * -(-shape[1] // 8) * 8 // 2 + 12


def test_true_bits_of_a_large_matrix():
    budget = (
        QuIPSharp(2).quantise([LayerWeight(name="a", W=torch.randn(256, 512))], None)[0].budget
    )
    assert 8 * budget.total / (256 * 512) == pytest.approx(2, abs=0.001)


def test_heavy_tails_widen_the_scale():
    method = QuIPSharp(4)
    gaussian = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    heavy = gaussian * gaussian.abs()
    for x, wider in ((gaussian, False), (heavy, True)):
        rms = float(x.square().mean().sqrt())
        assert (method._scale(x) > 1.1 * rms) is wider
    whole = method._scale(heavy)
    error = (whole * method.quantise_gaussian(heavy / whole) - heavy).square().mean()
    rms = heavy.square().mean().sqrt()
    assert error < 0.7 * (rms * method.quantise_gaussian(heavy / rms) - heavy).square().mean()
