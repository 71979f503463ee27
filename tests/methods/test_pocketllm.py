import math

import pytest
import torch

from nwc.methods.base import LayerWeight
from nwc.methods.latent_codebook import Fit
from nwc.methods.pocketllm import (
    Network,
    PocketLLM,
    Shape,
    best_shape,
    decoder_parameters,
)
from nwc.methods.rtn import round_in_groups


class Quick(PocketLLM):
    fit = Fit(steps=40, batch_weights=2**13, rounds=4)


def heavy(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(m, n, generator=generator)
        * torch.randn(m, n, generator=generator).mul(0.5).exp()
    )


def found(W, bits, method=Quick):
    return method(bits).quantise([LayerWeight(name="a", W=W)], None)[0]


def test_published_ratio():
    # FP32 up projection of Llama 2 (7B), 45.1 M weights: 16.4, with 5.6 M indices.
    assert decoder_parameters(8) == 768
    budget = Shape(8, 15).budget(11008, 4096)
    assert 4 * 11008 * 4096 / budget.total == pytest.approx(16.4, abs=0.15)
    assert 8 * budget.total == 15 * 11008 * 512 + 16 * 2**15 * 8 + 32 * 768 + 32


def test_parameters_are_what_is_counted():
    network = Network(4, torch.Generator())
    assert sum(p.numel() for p in network.parameters()) == decoder_parameters(4)


def test_networks_start_as_the_identity_and_normalise_rows():
    network = Network(4, torch.Generator().manual_seed(0))
    x = torch.randn(5, 6, 4)
    assert torch.equal(network(x), x)
    with torch.no_grad():
        for B in network.narrow:
            B.copy_(torch.randn_like(B))
    network.widen = torch.nn.ParameterList([network.widen[0]])
    network.narrow = torch.nn.ParameterList([network.narrow[0]])
    # A row's loudness does not matter to what a layer adds to it, that of its sub-vectors does.
    added = network(x) - x
    torch.testing.assert_close(network(100 * x) - 100 * x, added, rtol=1e-2, atol=1e-2)
    louder = x.clone()
    louder[:, 0] *= 100
    assert not torch.allclose(network(louder)[:, 1:] - x[:, 1:], added[:, 1:], rtol=0.1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize(("m", "n"), [(64, 300), (320, 864), (1024, 1024), (4096, 4096)])
def test_shapes_keep_to_the_bits(m, n, bits):
    shape = best_shape(m, n, bits)
    spent = 8 * shape.budget(m, n).total / (m * n)
    smallest = 8 * Shape(1, 1).budget(m, n).total / (m * n)
    assert spent <= max(1.01 * bits, smallest)
    assert shape.index_bits / shape.d > 0.4 * bits


def test_error_by_the_high_resolution_formula():
    # Scalars: Panter and Dite's sqrt(3) pi / 2.
    assert 2 ** (Shape(1, 5).error() + 10) == pytest.approx(math.sqrt(3) * math.pi / 2)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(512, 512, generator=generator)
    shape = best_shape(512, 512, 4)
    assert shape == Shape(2, 8)
    error = float((found(W, 4).weight - W).square().mean())
    assert 0.95 < error / 2 ** shape.error() < 1.3


@pytest.mark.parametrize(("m", "n"), [(24, 301), (63, 100), (1, 7)])
def test_sizes_that_do_not_fit(m, n):
    W = heavy(m, n)
    result = found(W, 4)
    assert result.weight.shape == W.shape
    assert (result.weight - W).norm() < W.norm()


def test_few_different_vectors_are_kept():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(4, 4, generator=generator)
    W = few[torch.randint(4, (64, 32), generator=generator)].flatten(1)
    assert (found(W, 4).weight - W).norm() < 2e-3 * W.norm()


def test_better_than_rounding():
    W = heavy(256, 512)
    plain = round_in_groups(W, 2)
    assert (found(W, 2).weight - W).square().sum() < 0.5 * (plain - W).square().sum()


def test_training_helps():
    class Untrained(PocketLLM):
        fit = Fit(steps=0, rounds=4)

    W = heavy(128, 512)
    with_, without = (found(W, 3, x).weight - W for x in (Quick, Untrained))
    assert with_.square().sum() < 0.97 * without.square().sum()


def test_zero_and_seeds():
    assert not found(torch.zeros(8, 64), 4).weight.any()
    W = heavy(16, 64)
    assert torch.equal(found(W, 3).weight, found(W, 3).weight)
