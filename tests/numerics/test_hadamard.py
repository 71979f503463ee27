import pytest
import torch

from nwc.errors import ConfigError
from nwc.numerics.hadamard import hadamard, mix, mix_both


def test_matrix_by_kronecker_products():
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    matrix = torch.ones(1, 1)
    for _ in range(5):
        torch.testing.assert_close(hadamard(torch.eye(len(matrix))), matrix)
        matrix = torch.kron(matrix, two)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_it_is_its_own_inverse(n):
    x = torch.randn(3, 2, n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard(hadamard(x)), x)


@pytest.mark.parametrize("n", [0, 3, 12])
def test_other_lengths_are_refused(n):
    with pytest.raises(ConfigError, match="power of two"):
        hadamard(torch.zeros(2, n))


@pytest.mark.parametrize("n", [1, 2, 3, 9, 48, 63, 64, 288])
def test_mixing_is_orthogonal(n):
    matrix = mix(torch.eye(n), 5)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n), atol=1e-5, rtol=0)
    torch.testing.assert_close(mix(matrix, 5, inverse=True), torch.eye(n), atol=1e-5, rtol=0)


def test_an_outlier_is_spread():
    W = torch.zeros(48, 64)
    W[7, 9] = 1
    mixed = mix_both(W, 1)
    assert float(mixed.abs().max()) < 0.1
    torch.testing.assert_close(mix_both(mixed, 1, inverse=True), W, atol=1e-5, rtol=0)
    assert not torch.equal(mix_both(W, 2), mixed)


def test_any_source_looks_gaussian():
    x = torch.distributions.StudentT(3.0).sample((512, 512))
    x /= x.square().mean().sqrt()
    mixed = mix_both(x, 0)
    assert float(mixed.pow(4).mean()) == pytest.approx(3, abs=0.15)
