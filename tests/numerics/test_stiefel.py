import pytest
import torch

from nwc.numerics.stiefel import CayleySGD, direction, turned


def orthogonal(n, seed=0):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed)))[0]


def test_direction_is_skew_and_keeps_tangents():
    X, A = orthogonal(6), torch.randn(6, 6)
    W = direction(X, torch.randn(6, 6))
    torch.testing.assert_close(W, -W.T)
    tangent = (A - A.T) @ X
    torch.testing.assert_close(direction(X, tangent) @ X, tangent, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_turned_matrices_stay_orthogonal(alpha):
    X, A = orthogonal(20), torch.randn(20, 20)
    Y = turned(X, A - A.T, alpha)
    torch.testing.assert_close(Y @ Y.T, torch.eye(20), atol=1e-5, rtol=0)


def test_a_small_step_follows_the_direction():
    X, A = orthogonal(5), torch.randn(5, 5)
    moved = (turned(X, A - A.T, 1e-3) - X) / 1e-3
    torch.testing.assert_close(moved, (A - A.T) @ X, atol=0.05, rtol=0.05)


def test_procrustes():
    # The orthogonal X with the least |X A - B| is known: U V^T of B A^T.
    A = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    B = orthogonal(8, 2) @ A + 0.1 * torch.randn(8, 30, generator=torch.Generator().manual_seed(3))
    U, _, V = torch.linalg.svd(B @ A.T)
    best = float((U @ V @ A - B).square().sum())
    X = orthogonal(8, 4)
    X[:, 0] *= torch.linalg.det(X).sign() * torch.linalg.det(U @ V).sign()
    descent = CayleySGD([X])
    for step in range(300):
        descent.step([2 * (X @ A - B) @ A.T], 0.005 * (1 - step / 300))
    torch.testing.assert_close(X @ X.T, torch.eye(8), atol=1e-5, rtol=0)
    assert float((X @ A - B).square().sum()) < 1.01 * best
