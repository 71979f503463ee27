import pytest
import torch

from nwc.methods.base import LayerWeight
from nwc.methods.gptq import GPTQ, GPTQActOrder, gptq
from nwc.methods.rtn import Grid, round_in_groups
from nwc.numerics.ldlq import DAMPING_LADDER, proxy_loss


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


def test_two_columns_by_brute_force():
    # The first column goes to its nearest value; then every value is tried for the second.
    W, H = problem(64, 2)
    found = gptq(W, H, 3)
    grid = Grid.of(W, 3)
    first = grid.round(W[:, :1])
    assert torch.equal(found[:, :1], first)
    H = H + DAMPING_LADDER[0] * H.diagonal().mean() * torch.eye(2)
    values = (torch.arange(8) - grid.zero) * grid.scale
    E = torch.stack([(W[:, :1] - first).expand(-1, 8), W[:, 1:] - values], -1)
    best = torch.einsum("rci,ij,rcj->rc", E, H, E).argmin(1)
    torch.testing.assert_close(found[:, 1], values.gather(1, best[:, None])[:, 0])


def test_without_correlation_it_rounds_to_nearest():
    W, _ = problem(8, 256)
    torch.testing.assert_close(gptq(W, torch.eye(256), 4), round_in_groups(W, 4))


@pytest.mark.parametrize("method", [GPTQ, GPTQActOrder])
def test_better_than_rounding(method):
    W, H = problem(48, 300)
    layer = LayerWeight(name="a", W=W)
    found = method(4).quantise([layer], H)[0].weight
    assert proxy_loss(W - found, H) < 0.5 * proxy_loss(W - round_in_groups(W, 4), H)


def test_stacked_layers_are_done_as_one():
    (W, H), (V, _) = problem(16, 200), problem(32, 200, seed=1)
    layers = [LayerWeight(name="a", W=W), LayerWeight(name="b", W=V)]
    together = GPTQActOrder(3).quantise(layers, H)
    alone = GPTQActOrder(3).quantise(layers[1:], H)
    torch.testing.assert_close(together[1].weight, alone[0].weight)


def test_metadata_counts():
    W, H = problem(64, 256)
    plain, ordered = (
        m(4).quantise([LayerWeight(name="a", W=W)], H)[0] for m in (GPTQ, GPTQActOrder)
    )
    assert 8 * plain.budget.total / W.numel() == 4 + 20 / 128
    assert ordered.budget.total - plain.budget.total == 4 * 256
