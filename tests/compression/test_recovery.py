import pytest
import torch
from torch import nn

from nwc.compression.recovery import FineTuner, RecoveryConfig, split_batches
from nwc.errors import ConfigError


class Block(nn.Module):
    """Two layers with a residual connection."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(12, 8, generator=generator) / 3)
        self.second = nn.Parameter(torch.randn(8, 12, generator=generator) / 3)
        self.norm = nn.Parameter(torch.ones(8))
        self.requires_grad_(False)

    def forward(self, x):
        return x + ((x * self.norm) @ self.first.T).relu() @ self.second.T


@pytest.fixture
def features():
    return [torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(i)) for i in range(16)]


def tuner_of(block, features, targets, **options):
    settings = {"steps": 60, "learning_rate": 0.02} | options
    return FineTuner(
        block, features.__getitem__, targets.__getitem__, len(features), RecoveryConfig(**settings)
    )


@pytest.fixture
def damaged(features):
    """A block whose first layer was rounded, and what it gave before."""
    block = Block()
    targets = [block(x) for x in features]
    block.first.mul_(4).round_().div_(4)
    return block, targets


@pytest.mark.parametrize("bf16", [False, True])
def test_the_rest_of_the_block_makes_up_for_what_is_lost(damaged, features, bf16):
    block, targets = damaged
    first = block.first.clone()
    tuner = tuner_of(block, features, targets, bf16=bf16)
    found = tuner.tune({"second": block.second, "norm": block.norm}, {}, {}, seed=0)
    assert found.after < 0.7 * found.before
    assert found.steps > 0
    assert torch.equal(block.first, first)
    assert not any(p.requires_grad or p.grad is not None for p in block.parameters())
    # The report is what the block now does on the held-out batches.
    power = sum((targets[i] - features[i]).square().sum() for i in tuner.held_out)
    error = sum((block(features[i]) - targets[i]).square().sum() for i in tuner.held_out)
    assert found.after == pytest.approx(float(error / power), rel=1e-5)


def test_it_never_makes_a_block_worse(features):
    block = Block()
    targets = [block(x) for x in features]  # nothing is lost
    before = {k: v.clone() for k, v in block.named_parameters()}
    found = tuner_of(block, features, targets, learning_rate=0.5).tune(
        dict(block.named_parameters()), {}, {}, seed=0
    )
    assert (found.before, found.after, found.steps) == (0, 0, 0)
    assert all(torch.equal(before[k], v) for k, v in block.named_parameters())


def test_frozen_places_do_not_change(damaged, features):
    block, targets = damaged
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:4] = True
    before = block.second.clone()
    tuner_of(block, features, targets).tune({"second": block.second}, {"second": mask}, {}, seed=0)
    assert torch.equal(block.second[:4], before[:4])
    assert not torch.equal(block.second[4:], before[4:])


def test_what_is_stored_in_16_bits_is_judged_so(damaged, features):
    block, targets = damaged
    tuner_of(block, features, targets).tune(
        {"norm": block.norm, "second": block.second}, {}, {"norm": torch.bfloat16}, seed=0
    )
    assert torch.equal(block.norm, block.norm.bfloat16().float())
    assert not torch.equal(block.second, block.second.bfloat16().float())


def test_the_seed_decides(damaged, features):
    block, targets = damaged
    start = block.second.clone()
    results = []
    for seed in (0, 0, 1):
        block.second.copy_(start)
        tuner_of(block, features, targets).tune({"second": block.second}, {}, {}, seed=seed)
        results.append(block.second.clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_one_batch_cannot_be_judged_and_changes_nothing(damaged, features):
    block, targets = damaged
    before = block.second.clone()
    found = tuner_of(block, features[:1], targets).tune({"second": block.second}, {}, {}, seed=0)
    assert found.steps == 0
    assert torch.equal(block.second, before)


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_batches_are_learnt_from_or_held_out(count):
    train, held_out = split_batches(count, 0.125)
    assert sorted(train + held_out) == list(range(count))
    assert train
    assert held_out


@pytest.mark.parametrize("options", [{"steps": 0}, {"learning_rate": 0.0}])
def test_options_that_cannot_be(options):
    with pytest.raises(ConfigError, match="fine-tuning has"):
        RecoveryConfig(**options)
