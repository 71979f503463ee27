import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nwc.methods.awq import AWQ, EXPONENTS, RANGES, awq, best_scales, round_clipped
from nwc.methods.base import LayerWeight
from nwc.methods.rtn import Grid, round_in_groups
from nwc.numerics.ldlq import proxy_loss


def problem(m, n, seed=0, spread=1.0):
    """Inputs of very different size, as in language models."""
    generator = torch.Generator().manual_seed(seed)
    power = torch.exp(spread * torch.randn(n, generator=generator))
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    X = X * power
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


def brute_force_loss(W, H, bits):
    """The least error over every exponent, by the definition."""
    losses = []
    for a in EXPONENTS.tolist():
        s = H.diagonal().double().sqrt() ** a
        s = (s / (s.max() * s.min()).sqrt()).float()
        E = W - round_in_groups(W * s, bits) / s
        losses.append(float(torch.trace(E @ H @ E.T)))
    return min(losses)


def test_the_exponent_is_the_best_of_the_grid():
    W, H = problem(16, 150)
    s = best_scales(W, H, 3)
    E = W - round_in_groups(W * s, 3) / s
    assert proxy_loss(E, H) == pytest.approx(brute_force_loss(W, H, 3), rel=1e-3)


def test_clipping_by_brute_force():
    # Two groups of three columns; every pair of ranges is tried by the whole definition.
    W, H = problem(4, 6)
    H[:3, 3:] = H[3:, :3] = 0
    found = round_clipped(W, H, 2, group=3)
    for row, w in enumerate(W):
        losses = []
        for shares in itertools.product(RANGES.tolist(), repeat=2):
            parts = []
            for part, share in zip(w.split(3), shares, strict=True):
                inside = part.clamp(-share * part.abs().max(), share * part.abs().max())
                parts.append(Grid.of(inside[None], 2).round(inside[None])[0])
            e = w - torch.cat(parts)
            losses.append(float(e @ H @ e))
        e = w - found[row]
        assert float(e @ H @ e) == pytest.approx(min(losses), rel=1e-5)


@given(
    m=st.integers(1, 20), n=st.integers(1, 300), bits=st.integers(2, 8), seed=st.integers(0, 99),
    spread=st.floats(0, 4),
)  # fmt: skip
def test_never_worse_than_rounding(m, n, bits, seed, spread):
    W, H = problem(m, n, seed, spread)
    found, rounded = awq(W, H, bits), round_in_groups(W, bits)
    assert proxy_loss(W - found, H) <= proxy_loss(W - rounded, H) * (1 + 1e-5)


def test_much_better_where_inputs_differ():
    W, H = problem(48, 384)
    assert proxy_loss(W - awq(W, H, 3), H) < 0.7 * proxy_loss(W - round_in_groups(W, 3), H)


def test_inputs_that_are_never_on():
    W, H = problem(8, 64)
    H[:, 5] = H[5] = 0
    assert torch.isfinite(awq(W, H, 4)).all()
    dead = awq(W, torch.zeros(64, 64), 4)
    torch.testing.assert_close(dead, round_in_groups(W, 4))


def test_layers_with_one_input_share_their_scales():
    (W, H), (V, _) = problem(16, 200), problem(32, 200, seed=1)
    layers = [LayerWeight(name="a", W=W), LayerWeight(name="b", W=V)]
    together = AWQ(4).quantise(layers, H)
    both = awq(torch.cat([W, V]), H, 4)
    assert torch.equal(torch.cat([q.weight for q in together]), both)
    assert 8 * together[0].budget.total / W.numel() == 4 + 2 * 20 / 200
