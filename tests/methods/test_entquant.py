import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nwc.codec.compressed import CompressedTensor
from nwc.coding.rate import budget
from nwc.coding.tables import TableBank
from nwc.methods.base import LayerWeight
from nwc.methods.entquant import EntQuant, objective, row_steps
from nwc.methods.rtn import RTN
from nwc.numerics.ldlq import proxy_loss


def matrix(m, n, seed=1):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def compress(W, gain, H=None):
    bank, how = TableBank(), EntQuant()
    result = how.compress([LayerWeight(name="a", W=W)], H, gain, bank)[0]
    return CompressedTensor(result.data, how.codec, bank)


@given(
    m=st.integers(1, 4), n=st.integers(64, 200), price=st.floats(0.03, 0.5),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_steps_by_brute_force(m, n, price, seed):
    W = matrix(m, n, seed)
    W = W * torch.arange(1, m + 1)[:, None]
    unit = price * float(W.abs().mean())
    found = objective(W, row_steps(W, price), unit)
    start = 2 * (unit * W.abs().mean(1)).sqrt()
    tried = [objective(W, start * 2 ** (i / 100), unit) for i in range(-140, 141)]
    assert (found <= 1.1 * torch.stack(tried).amin(0)).all()


def test_steps_at_high_rates():
    # An error is uniform within half a step: its mean magnitude is a quarter of the step.
    W = matrix(3, 20_000) * torch.tensor([[0.1], [1.0], [10.0]])
    price = 1e-4
    expected = (4 * price * W.abs().mean(1) * W.abs().mean()).sqrt()
    torch.testing.assert_close(row_steps(W, price), expected, rtol=0.1, atol=0)


def test_the_price_is_one_for_all_sizes_of_weights():
    W = matrix(8, 100)
    torch.testing.assert_close(row_steps(1000 * W, 0.01), 1000 * row_steps(W, 0.01))


@pytest.mark.parametrize("gain", [0.0, 2.0, 4.0])
def test_reported_errors_are_those_of_the_decoded_weight(gain):
    X = matrix(300, 60, seed=2) * torch.logspace(-1, 1, 60)
    W, H = matrix(50, 60) * torch.logspace(-2, 2, 50)[:, None], X.T @ X / 300
    tensor = compress(W, gain, H)
    E = W - tensor.weight()
    assert tensor.errors.relative == pytest.approx(float(E.norm() / W.norm()), rel=1e-4)
    expected = proxy_loss(E, H) / proxy_loss(W, H)
    assert tensor.errors.hessian == pytest.approx(expected, rel=1e-3)
    # It takes no notice of H.
    assert torch.equal(tensor.weight(), compress(W, gain).weight())


def test_rows_have_the_steps_that_were_found():
    W = matrix(32, 200) * torch.logspace(-1, 1, 32)[:, None]
    tensor = compress(W, 2.0)
    steps = tensor.row_scales * tensor.scales[0] / 4
    torch.testing.assert_close(steps, row_steps(W, math.pi / 8 / 16), rtol=0.01, atol=0)


def test_a_unit_of_gain_is_a_bit():
    W = matrix(256, 128)
    sizes = [compress(W, gain).stream.head.words for gain in (2.0, 3.0)]
    assert 16 * (sizes[1] - sizes[0]) / W.numel() == pytest.approx(1, abs=0.05)


def test_fewer_bits_and_less_error_than_rounding():
    W = matrix(256, 512)
    rounded = RTN(4).quantise([LayerWeight(name="a", W=W)], None)[0]
    tensor = compress(W, 1.9)
    assert budget(tensor.stream).total < rounded.budget.total
    assert (W - tensor.weight()).norm() < 0.9 * (W - rounded.weight).norm()


def test_odd_matrices():
    zeros = matrix(40, 48)
    zeros[::3] = 0
    outlier = matrix(40, 48)
    outlier[7, 9] = 1e4
    for W in (matrix(1, 48), matrix(200, 1), torch.zeros(32, 48), zeros, outlier):
        found = compress(W, 2.0).weight()
        assert torch.isfinite(found).all()
        assert (W - found).norm() <= 0.2 * W.norm()
