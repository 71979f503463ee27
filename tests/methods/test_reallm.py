import pytest
import torch

from nwc.methods.base import LayerWeight
from nwc.methods.latent_codebook import Fit
from nwc.methods.reallm import Decoder, ReALLM, budget_of, network_parameters
from nwc.methods.rtn import round_in_groups
from nwc.numerics.ldlq import DAMPING_LADDER, proxy_loss
from nwc.numerics.low_rank import cholesky_root, singular_values


class Quick(ReALLM):
    fit = Fit(steps=20, batch_weights=2**12, rounds=4)


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


def found(W, bits, H=None):
    return Quick(bits).quantise([LayerWeight(name="a", W=W)], H)[0]


def test_bits_by_the_formula():
    # Rank 64 of 4096 x 4096: half a bit. A pair of 2-bit coordinates has 16 values.
    budget = budget_of(4096, 4096, 2, 64)
    wanted = 2 * 4096**2 + 16 * 64 * 8192 + 16 * 2 * 16 + 16 * 305 + 16 * 4096
    assert 8 * budget.total == wanted
    assert (
        network_parameters()
        == 305
        == sum(p.numel() for p in Decoder(torch.Generator()).parameters())
    )
    for asked, nominal in ((2.5, 2.5), (4, 3.5), (5, 4.5)):
        assert ReALLM(asked).nominal_bits == pytest.approx(nominal, abs=0.01)
    assert found(torch.randn(30, 301), 3.5).budget == budget_of(30, 301, 3, 1)


def test_low_rank_part_is_the_best():
    # What is left after the low-rank part is what the singular values say.
    W, H = problem(64, 96)
    method = Quick(2.5)
    seen = []
    decode = method._decoded
    method._decoded = lambda V, bits: seen.append(decode(V, bits)) or seen[-1]
    result = method.quantise([LayerWeight(name="a", W=W)], H)[0]
    H = H + DAMPING_LADDER[0] * H.diagonal().mean() * torch.eye(96)
    rank = torch.linalg.matrix_rank(result.weight - seen[0], rtol=1e-3)
    dropped = singular_values(W - seen[0], cholesky_root(H))[rank:]
    wanted = float(dropped.square().sum())
    assert rank == 1
    assert proxy_loss(W - result.weight, H) == pytest.approx(wanted, rel=1e-2)


def test_inputs_help():
    W, H = problem(192, 200)
    seen, blind = (found(W, 2.5, h).weight for h in (H, None))
    assert proxy_loss(W - seen, H) < 0.99 * proxy_loss(W - blind, H)


def test_better_than_rounding():
    W, H = problem(128, 256)
    E, plain = W - found(W, 2.5, H).weight, W - round_in_groups(W, 2)
    assert proxy_loss(E, H) < 0.5 * proxy_loss(plain, H)


@pytest.mark.parametrize(("m", "n"), [(1, 7), (17, 33), (63, 100)])
def test_sizes_that_do_not_fit(m, n):
    W, _ = problem(m, n)
    result = found(W, 4.5)
    assert result.weight.shape == W.shape
    assert (result.weight - W).norm() < 0.3 * W.norm()


def test_dead_rows_and_seeds():
    W, H = problem(32, 64)
    W[3] = 0
    result = found(W, 3.5, H).weight
    assert torch.equal(result, found(W, 3.5, H).weight)
    assert result[3].norm() < 0.1 * result.norm()
    assert not found(torch.zeros(16, 64), 3.5, H).weight.any()
