import pytest
import torch

from nwc.errors import ConfigError
from nwc.training.dataset import chunks_of, gather, synthetic


def test_chunks_are_normalised_and_whole():
    W = torch.randn(70, 30) * torch.linspace(0.1, 9, 30)
    W[:, 4] = 0
    chunks = chunks_of([W, torch.randn(9, 5)])  # the second has no whole chunk
    assert chunks.shape == (29 * 4, 16)
    assert float(chunks.square().mean()) == pytest.approx(1, abs=0.1)


def test_gather_draws_at_most_so_many():
    train, held_out = [torch.randn(512, 64)], [torch.randn(256, 64)]
    found = gather(train, held_out, 1500, seed=0)
    assert (len(found.train), len(found.held_out)) == (1500, 1024)
    assert torch.equal(found.train, gather(train, held_out, 1500, seed=0).train)
    assert not torch.equal(found.train, gather(train, held_out, 1500, seed=1).train)


def test_too_little_to_train_on():
    large, small = [torch.randn(512, 64)], [torch.randn(16, 64)]
    with pytest.raises(ConfigError, match=r"64 chunks .* to measure on, wanted at least 1,024"):
        gather(large, small, 10_000, 0)
    with pytest.raises(ConfigError, match=r"0 chunks .* to train on"):
        gather([], large, 10_000, 0)


def test_synthetic_chunks_have_unit_variance_and_heavy_tails():
    x = synthetic(50_000, torch.Generator().manual_seed(0))
    assert float(x.square().mean()) == pytest.approx(1, abs=0.03)
    assert float((x**4).mean()) > 4.5  # a normal has 3
