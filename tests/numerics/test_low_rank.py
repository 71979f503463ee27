import pytest
import torch

from nwc.numerics.ldlq import DAMPING_LADDER, proxy_loss
from nwc.numerics.low_rank import best_low_rank, cholesky_root, eigen_root, singular_values


def problem(m, n, tokens=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens or 4 * n, n, generator=generator)
    X = X @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


def damped(H):
    return H + DAMPING_LADDER[0] * H.diagonal().mean() * torch.eye(len(H))


@pytest.mark.parametrize("make", [cholesky_root, eigen_root])
def test_roots(make):
    _, H = problem(1, 63)
    root = make(H)
    torch.testing.assert_close(root.S @ root.S.T, damped(H), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(root.S @ root.inverse, torch.eye(63), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [cholesky_root, eigen_root])
@pytest.mark.parametrize("rank", [1, 7, 24, 40])
def test_loss_is_what_was_dropped(make, rank):
    # The closed form: tr(E H E^T) is the sum of the squared singular values dropped.
    W, H = problem(24, 40)
    left, right, dropped = best_low_rank(W, rank, make(H))
    assert left.shape == (24, min(rank, 24))
    assert right.shape == (min(rank, 24), 40)
    E = W - left @ right
    found = float(((E @ damped(H)) * E).sum())
    assert found == pytest.approx(float(dropped.square().sum()), rel=1e-3, abs=1e-2)


def test_both_roots_truncate_alike():
    W, H = problem(24, 40)
    first, second = (best_low_rank(W, 9, make(H)) for make in (cholesky_root, eigen_root))
    torch.testing.assert_close(
        first.left @ first.right, second.left @ second.right, rtol=1e-2, atol=1e-2
    )


def test_no_other_matrix_of_the_rank_is_better():
    # Neighbours in all directions of the factors, and the truncation that does not know H.
    W, H = problem(12, 20)
    H = damped(H)
    best = best_low_rank(W, 3, cholesky_root(H))
    loss = proxy_loss(W - best.left @ best.right, H)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 1e-1) * 20:
        left, right = (x + size * torch.randn(x.shape, generator=generator) for x in best[:2])
        assert proxy_loss(W - left @ right, H) >= loss * (1 - 1e-3)
    plain = best_low_rank(W, 3)
    assert proxy_loss(W - plain.left @ plain.right, H) > 1.05 * loss


def test_fewer_tokens_than_columns():
    # Without damping H has no triangular root; the other one loses nothing on what was seen.
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(10, 40, generator=generator)
    W = torch.randn(24, 40, generator=generator)
    left, right, _ = best_low_rank(W, 10, eigen_root(X.T @ X, damping=0.0))
    torch.testing.assert_close(left @ right @ X.T, W @ X.T, rtol=1e-3, atol=1e-3)


def test_factors_are_of_one_size():
    W, H = problem(24, 40)
    left, right, _ = best_low_rank(W, 9, cholesky_root(1e6 * H))
    torch.testing.assert_close(left.abs().amax(0), right.abs().amax(1))


def test_nothing_and_everything():
    W, H = problem(24, 40)
    left, right, dropped = best_low_rank(torch.zeros(5, 40), 2, cholesky_root(H))
    assert not (left @ right).any()
    assert not dropped.any()
    assert torch.equal(singular_values(W), torch.linalg.svdvals(W))
