import pytest
import torch

from nwc.errors import ConfigError
from nwc.numerics.block_ldlq import block_feedback, block_sweep, block_upper
from nwc.numerics.ldlq import feedback, ldl, proxy_loss, sweep


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


@pytest.mark.parametrize("size", [1, 4, 8, 24])
def test_factors_multiply_to_h(size):
    _, H = problem(1, 24)
    factor = ldl(H, (0.0,))
    upper = block_upper(factor.upper, size)
    own = torch.block_diag(*[factor.upper[i : i + size, i : i + size] for i in range(0, 24, size)])
    D = own @ torch.diag(factor.d) @ own.T
    torch.testing.assert_close(upper @ D @ upper.T, H, rtol=1e-3, atol=1e-3)
    for i in range(0, 24, size):
        block = upper[i : i + size]
        torch.testing.assert_close(block[:, i : i + size], torch.eye(size))
        assert (block[:, :i] == 0).all()


def test_blocks_of_one_are_plain_feedback():
    W, H = problem(5, 40)
    factor = ldl(H)
    one, other = W.T.clone(), W.T.clone()
    feedback(one, factor.upper, lambda k, column: column.round())
    block_feedback(other, block_upper(factor.upper, 1), torch.round, 1, group=16)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("group", [8, 20, 128])
def test_groups_change_nothing(group):
    W, H = problem(7, 64)
    upper = block_upper(ldl(H).upper, 8)
    columns = W.T.clone()
    block_feedback(columns, upper, torch.round, 8, group=group)
    # By the formula, with all errors at hand.
    plain = torch.zeros_like(W)
    for start in range(0, 64, 8):
        own = slice(start, start + 8)
        target = W[:, own] + plain[:, :start] @ upper[:start, own]
        plain[:, own] = W[:, own] - target.round()
    torch.testing.assert_close(columns.T, plain, atol=1e-4, rtol=1e-4)


def test_less_loss_than_rounding():
    W, H = problem(16, 64)
    columns = W.T.clone()
    block_feedback(columns, block_upper(ldl(H).upper, 8), torch.round, 8)
    assert proxy_loss(columns.T, H) < 0.5 * proxy_loss(W - W.round(), H)


def test_blocks_must_fill_the_columns():
    with pytest.raises(ConfigError, match="10 columns, wanted a multiple of 8"):
        block_upper(torch.eye(10), 8)


def after_feedback(m, n, size):
    W, H = problem(m, n)
    factor = ldl(H)
    errors = W.T.clone()
    block_feedback(errors, block_upper(factor.upper, size), torch.round, size)
    return W, H, errors


def test_a_sweep_of_blocks_of_one_is_a_sweep_of_columns():
    W, H, errors = after_feedback(5, 40, 1)
    plain = errors.clone()
    block_sweep(errors, W.T, H, torch.round, 1, group=16)

    def improve(k, wanted, now):
        new = W[:, k] - (W[:, k] - wanted).round()
        return torch.where((new - wanted).abs() < (now - wanted).abs(), new, now)

    sweep(plain, H, improve, block=40)
    torch.testing.assert_close(errors, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("group", [8, 128])
def test_no_row_is_worse_for_a_sweep(group):
    W, H, errors = after_feedback(30, 64, 8)
    for _ in range(3):
        before = errors.clone()
        block_sweep(errors, W.T, H, torch.round, 8, group=group)
        for old, new in zip(before.T, errors.T, strict=True):
            assert proxy_loss(new[None], H) <= proxy_loss(old[None], H) * (1 + 1e-5)
        # What is restored are still integers.
        torch.testing.assert_close(W - errors.T, (W - errors.T).round(), atol=1e-4, rtol=0)
    first = after_feedback(30, 64, 8)[2]
    assert proxy_loss(errors.T, H) < 0.95 * proxy_loss(first.T, H)


def test_a_swept_block_is_the_best_for_its_neighbours():
    # Without rounding, the block moves to where the gradient of its own columns is zero.
    W, H, errors = after_feedback(4, 24, 8)
    block_sweep(errors, W.T, H, lambda block: block, 8)
    assert float((H[-8:] @ errors).abs().max()) < 1e-3 * float(H.abs().max())
