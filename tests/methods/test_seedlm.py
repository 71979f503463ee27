import numpy as np
import pytest
import torch

from nwc.kernels.seeds_numba import best_seeds
from nwc.methods.base import LayerWeight
from nwc.methods.seedlm import (
    SHAPES,
    SeedLM,
    all_seeds,
    best_seeds_plainly,
    highest_exponent,
    states_after,
)


def test_the_register_goes_through_all_states():
    states = states_after(np.array([1]), 2**16 - 1)[0]
    assert len(np.unique(states)) == 2**16 - 1
    assert states.min() == 1


def test_matrices_by_hand():
    seeds = all_seeds(SHAPES[4])
    assert seeds.U.shape == (2**16 - 1, 8, 3)
    states = states_after(np.array([4242]), 24)[0]
    wanted = (states.reshape(8, 3) - 32768) / 32767
    assert np.allclose(seeds.U[4241], wanted, atol=1e-6)
    assert (seeds.U.min(), seeds.U.max()) == (-1, 1)


@pytest.mark.parametrize("bits", SHAPES)
def test_tables_belong_together(bits):
    seeds, P = all_seeds(SHAPES[bits]), SHAPES[bits].P
    some = slice(0, 3000)
    U, inverse = seeds.U[some].astype(np.float64), seeds.inverse[some].astype(np.float64)
    Q = seeds.Q[:, :, some].transpose(2, 1, 0)
    assert np.allclose(Q.transpose(0, 2, 1) @ Q, np.eye(P), atol=1e-5)
    well = np.linalg.cond(U) < 100
    assert well.mean() > 0.9
    assert np.allclose((inverse @ U)[well], np.eye(P), atol=1e-3)
    assert np.allclose((Q @ (Q.transpose(0, 2, 1) @ U))[well], U[well], atol=1e-4)


@pytest.mark.parametrize("bits", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_search_equals_brute_force(bits, scale):
    seeds, C = all_seeds(SHAPES[bits]), SHAPES[bits].C
    blocks = scale * np.random.default_rng(bits).standard_normal((6, C), dtype=np.float32)
    blocks[1] = 0
    blocks[2, 3] *= 20
    highest = highest_exponent(blocks, seeds)
    exponents = (highest - 15, highest)
    found, restored = np.full(6, -99), np.full_like(blocks, np.nan)
    best_seeds(blocks, *seeds, exponents, found, restored)
    plain = best_seeds_plainly(blocks, seeds, exponents)
    errors = [np.square(blocks - x).sum(1) for x in (restored, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4, abs=1e-9 * scale**2)
    assert ((found >= 0) & (found < 2**16 - 1)).all()


@pytest.mark.parametrize(("bits", "rms_error"), [(4, 0.123), (3, 0.226)])
def test_gaussian_error(bits, rms_error):
    # Of an independent replication on Gaussian weights; the paper prints none.
    W = 0.02 * torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    found = SeedLM(bits).quantise([LayerWeight(name="a", W=W)], None)[0].weight
    assert float((W - found).norm() / W.norm()) == pytest.approx(rms_error, rel=0.06)


@pytest.mark.parametrize(("bits", "columns"), [(4, 48), (4, 43), (3, 48), (3, 50)])
def test_bits_of_the_formula(bits, columns):
    W = torch.randn(2, columns)
    found = SeedLM(bits).quantise([LayerWeight(name="a", W=W)], None)[0]
    C, P = SHAPES[bits]
    blocks = -(-2 * columns // C)
    assert found.budget.total == -(-blocks * (16 + 4 * P + 4) // 8) + 1
    assert bits == (16 + 4 * P + 4) / C
    assert found.weight.shape == W.shape


def test_scale_plays_no_part():
    W = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    small, large = (
        SeedLM(4).quantise([LayerWeight(name="a", W=s * W)], None)[0].weight for s in (2.0**-9, 8)
    )
    torch.testing.assert_close(small * 2**12, large)
