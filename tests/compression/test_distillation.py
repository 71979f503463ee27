"""Norms and biases move towards the original; everything else stays, and it never gets worse."""

import dataclasses

import pytest
import torch

from nwc.compression.distillation import DistillationConfig, distil
from nwc.errors import CalibrationError


@pytest.fixture
def finished(llama, prepare):
    """A run of 3 bits, done, and windows to learn from."""
    run = prepare(llama, method="default", target=3.5, calibrated=True)
    return run, list(run.units()), run.compressor().stream._batches


def tuned(run, units, batches, **changes):
    config = dataclasses.replace(DistillationConfig(epochs=4), **changes)
    windows = torch.cat(batches)
    return distil(run.plan, run.source, run.job.method, units, windows, config)


def test_it_helps_where_nothing_was_seen(finished):
    changed, facts = tuned(*finished)
    run = finished[0]
    assert 0 < facts.after < facts.before
    assert facts.steps > 0
    assert changed
    for key, value in changed.items():
        assert run.plan.kept[key] in ("not a matrix", "bias")
        assert value.dtype == run.source.tensor(key).dtype
        assert value.shape == run.source.tensor(key).shape


def test_the_same_again(finished):
    first, facts = tuned(*finished)
    again, _ = tuned(*finished)
    assert facts == tuned(*finished)[1]
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_what_does_not_help_is_dropped(finished):
    changed, facts = tuned(*finished, learning_rate=0.9, epochs=1)
    assert facts.after <= facts.before
    assert (facts.steps == 0) == (changed == {})


def test_what_the_user_keeps_is_not_touched(llama, prepare):
    run = prepare(
        llama, method="default", target=3.5, calibrated=True, keep=("*input_layernorm*",)
    )
    changed, _ = tuned(run, list(run.units()), run.compressor().stream._batches)
    assert changed
    assert not any("input_layernorm" in key for key in changed)


def test_one_window_is_too_little(finished):
    run, units, batches = finished
    with pytest.raises(CalibrationError, match="none can be held out"):
        tuned(run, units, [batches[0][:1]])
