import pytest
import torch

from nwc.compression.rate_control import entry_bytes
from nwc.errors import ConfigError
from nwc.methods.ecsq import Ecsq


@pytest.mark.parametrize("name", ["ecsq", "default"])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("target", [3.0, 4.5, 7.0])
def test_the_target_is_met(llama, prepare, name, calibrated, target):
    run = prepare(llama, method=name, target=target, calibrated=calibrated)
    tensors = run.tensors()
    assert sorted(tensors) == sorted(t.name for t in run.plan.tensors)
    shared = len(run.bank().to_bytes()) if run.bank().tables else 0
    total = shared + sum(
        len(t.data) + entry_bytes(t.name, len(t.data), 6) for t in tensors.values()
    )
    assert 8 * total / run.plan.parameters == pytest.approx(target, rel=0.005)
    deviation = run.controller.deviation(run.done(tensors), shared)
    assert deviation == pytest.approx(8 * total / run.plan.parameters / target - 1, abs=1e-3)


def test_bytes_that_the_file_carries_once_are_counted(llama, prepare):
    run = prepare(llama, fixed_bytes=5000)
    streams = run.tensors().values()
    total = 5000 + sum(len(t.data) + entry_bytes(t.name, len(t.data), 6) for t in streams)
    assert 8 * total / run.plan.parameters == pytest.approx(4.5, rel=0.005)


def test_nothing_is_done_before_it_is_asked_for(llama, prepare, monkeypatch):
    calls = []
    original = Ecsq.compress
    monkeypatch.setattr(
        Ecsq,
        "compress",
        lambda self, layers, *rest: calls.append(1) or original(self, layers, *rest),
    )
    run = prepare(llama)
    units = run.units()
    assert calls == []
    assert next(units).number == 0
    assert len(calls) == len(run.plan.units[0])
    assert [unit.number for unit in units] == [1, 2]


def test_targets_that_cannot_be_met(llama, prepare):
    with pytest.raises(ConfigError, match=r"cannot be met.*--codec-by-reference"):
        prepare(llama, target=2.0, fixed_bytes=10**6)


def test_a_hessian_without_rank_is_damped(llama, prepare):
    # One repeated token: the Hessians have next to no rank, and still factor with damping.
    run = prepare(llama, calibrated=True, tokens=torch.full((2, 16), 7))
    tensors = run.tensors()
    assert all(0 < t.damping <= 1 and t.tokens == 32 for t in tensors.values())


def test_blocks_that_are_kept_are_run_but_not_compressed(llama, prepare):
    run = prepare(llama, calibrated=True, keep=("model.layers.0.*", "model.layers.2.*"))
    whole = prepare(llama, calibrated=True, name="whole")
    tensors, expected = run.tensors(), whole.tensors()
    assert [unit[0].block for unit in run.plan.units] == [1]
    assert set(tensors) == {name for name in expected if ".layers.1." in name}
    # Its inputs are those it has in the whole model.
    for name, tensor in tensors.items():
        assert tensor.damping == expected[name].damping
        assert tensor.by_importance is not None


def test_every_tensor_is_reported(llama, prepare):
    tensors = prepare(llama, calibrated=True, method="default").tensors()
    for tensor in tensors.values():
        assert 0 < tensor.relative < 0.2
        assert 0 < tensor.hessian < 0.02
        assert tensor.tokens == 512
        assert len(tensor.by_importance) == 10
    free = prepare(llama, method="default", name="free").tensors()
    assert all(t.hessian is None and t.tokens is None for t in free.values())


@pytest.mark.parametrize("steps", [0, 4])
def test_features_of_the_compressed_blocks(llama, prepare, steps):
    options = {"calibrated": True, "steps": steps, "target": 3.0}
    original = prepare(llama, **options, name="original").tensors()
    drifted = prepare(llama, **options, name="drifted", drifted=True).tensors()
    for name, tensor in original.items():
        # The first block has the same inputs either way.
        assert (drifted[name].data == tensor.data) == (".layers.0." in name), name


def test_fine_tuning_moves_only_what_comes_after(llama, prepare):
    plain = prepare(llama, calibrated=True, name="plain").tensors()
    run = prepare(llama, calibrated=True, steps=8, name="tuned")
    units = list(run.units())
    tuned = {t.name: t for unit in units for group in unit.groups() for t in group.tensors}
    same = {name for name, tensor in plain.items() if tuned[name].data == tensor.data}
    # Nothing was tuned before the very first group; not all of the rest can be unmoved.
    assert {f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv"} <= same
    assert len(same) < len(plain) // 2
    for unit in units:
        kept, history = unit.tuned()
        assert all(stage["after"] <= stage["before"] for stage in history)
        assert all(key in run.plan.kept for key in kept)
        assert all(value.dtype == torch.bfloat16 for value in kept.values())
