"""The order of the factorisation is the paper's trap: H = L^T D L, columns from the first on."""

import pytest
import torch

from nwc.errors import CalibrationError
from nwc.numerics.ldlq import DAMPING_LADDER, feedback, ldl, proxy_loss


def hessian(n, seed=0):
    X = torch.randn(4 * n + 8, n, generator=torch.Generator().manual_seed(seed))
    mix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed + 1)) / n**0.5
    X = X @ (torch.eye(n) + mix)
    return X.T @ X / len(X)


def rounded(_k, column):
    return column.round()


def plain(W, upper):
    """The definition, scalar by scalar: each column corrected by all errors before it."""
    m, n = W.shape
    E = torch.zeros(m, n)
    for k in range(n):
        for i in range(m):
            target = W[i, k] + sum(E[i, j] * upper[j, k] for j in range(k))
            E[i, k] = W[i, k] - target.round()
    return E


def test_factors_give_the_hessian_back():
    H = hessian(40)
    upper, d, damping = ldl(H, (0.0,))
    assert damping == 0
    assert torch.equal(upper.triu(), upper)
    torch.testing.assert_close(upper.diagonal(), torch.ones(40))
    torch.testing.assert_close(upper @ d.diag() @ upper.T, H, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("m", "n"), [(3, 1), (2, 63), (5, 20)])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_blocks_equal_the_plain_loop(m, n, block):
    W = 3 * torch.randn(m, n, generator=torch.Generator().manual_seed(2))
    upper = ldl(hessian(n)).upper
    columns = W.T.clone()
    feedback(columns, upper, rounded, block)
    torch.testing.assert_close(columns.T, plain(W, upper), rtol=1e-4, atol=1e-4)


def test_loss_is_the_sum_over_quantisation_errors():
    W, H = 3 * torch.randn(8, 130), hessian(130)
    upper, d, _ = ldl(H, (0.0,))
    E = W.T.clone()
    feedback(E, upper, rounded)
    F = E.T @ upper  # E L^T: what the quantiser itself did to each corrected column
    assert F.abs().max() <= 0.5 + 1e-3
    assert proxy_loss(E.T, H) == pytest.approx(float((F.square() * d).sum()), rel=1e-3)


def test_feedback_beats_rounding():
    W, H = 3 * torch.randn(16, 64), hessian(64)
    E = W.T.clone()
    feedback(E, ldl(H).upper, rounded)
    assert proxy_loss(E.T, H) < 0.9 * proxy_loss(W - W.round(), H)


def test_columns_see_errors_before_them_only():
    seen = []
    columns = torch.full((3, 4), 0.4)
    upper = torch.eye(3)
    upper[0, 2] = 1.0

    def note(k, target):
        seen.append(target[0].item())
        return target.round()

    feedback(columns, upper, note)
    assert seen == pytest.approx([0.4, 0.4, 0.8])


def test_the_ladder_climbs():
    X = torch.randn(3, 40)  # of rank 3
    H = X.T @ X
    H[0, 0] -= 0.004 * float(H.diagonal().mean())  # not even semi-definite
    damping = ldl(H).damping
    assert damping > DAMPING_LADDER[0]
    assert damping in DAMPING_LADDER


def test_zero_hessian():
    upper, d, _ = ldl(torch.zeros(5, 5))
    assert torch.equal(upper, torch.eye(5))
    assert (d > 0).all()


def test_unusable_hessians():
    with pytest.raises(CalibrationError, match="non-finite"):
        ldl(torch.full((2, 2), float("nan")))
    with pytest.raises(CalibrationError, match=r"indefinite.*other text"):
        ldl(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))
