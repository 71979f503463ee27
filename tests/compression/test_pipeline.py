import pytest
import torch

from nwc.coding.tables import TableBank
from nwc.compression.pipeline import Report, compress_model
from nwc.compression.plan import make_plan
from nwc.compression.rate_control import RateController
from nwc.compression.source import SourceCheckpoint
from nwc.compression.stream import BlockStream
from nwc.errors import ConfigError
from nwc.formats.shipped import shipped_codec
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural


def method(name):
    return Ecsq() if name == "ecsq" else Neural(shipped_codec("default", 4.0)[0])


def start(folder, name="ecsq", target=4.5, calibrated=False, fixed_bytes=0):
    """A compression that has not begun, its controller and its plan."""
    source = SourceCheckpoint(folder)
    plan, how = make_plan(source), method(name)
    stream = None
    if calibrated:
        tokens = torch.randint(256, (8, 64), generator=torch.Generator().manual_seed(0))
        stream = BlockStream(source, plan.skeleton, tokens)
    controller = RateController(
        source, plan, how, target=target, calibrated=calibrated, fixed_bytes=fixed_bytes
    )
    report = Report()
    layers = compress_model(
        source, plan, how, controller, TableBank(), stream=stream, report=report
    )
    return layers, controller, plan, report


@pytest.mark.parametrize("name", ["ecsq", "default"])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("target", [3.0, 4.5, 7.0])
def test_the_target_is_met(llama, name, calibrated, target):
    layers, controller, plan, report = start(llama, name, target, calibrated)
    sizes = {layer.name: len(layer.data) for layer in layers}
    assert list(sizes) == [t.key for t in plan.tensors]
    total = 8 * (sum(sizes.values()) + sum(75 + len(key) for key in sizes))
    assert total / plan.parameters == pytest.approx(target, rel=0.02)
    assert controller.deviation == pytest.approx(total / plan.parameters / target - 1)
    assert report.warnings == []


def test_bytes_that_the_file_carries_once_are_counted(llama):
    layers, _, plan, _ = start(llama, fixed_bytes=5000)
    total = 5000 + sum(len(r.data) + 75 + len(r.name) for r in layers)
    assert 8 * total / plan.parameters == pytest.approx(4.5, rel=0.02)


def test_nothing_is_done_before_it_is_asked_for(llama, monkeypatch):
    calls = []
    original = Ecsq.compress
    monkeypatch.setattr(
        Ecsq,
        "compress",
        lambda self, layers, *rest: calls.append(1) or original(self, layers, *rest),
    )
    layers, _, plan, _ = start(llama)
    assert calls == []
    next(layers)
    assert len(calls) == 1
    assert len(list(layers)) == len(plan.tensors) - 1


def test_targets_that_cannot_be_met(llama):
    with pytest.raises(ConfigError, match=r"cannot be met.*--codec-by-reference"):
        start(llama, target=2.0, fixed_bytes=10**6)


def test_dead_inputs_and_damping_are_reported(llama):
    _, _, plan, _ = start(llama)
    source, how = SourceCheckpoint(llama), method("ecsq")
    # One repeated token: the Hessians have next to no rank, and still factor with damping.
    stream = BlockStream(source, plan.skeleton, torch.full((2, 16), 7))
    controller = RateController(source, plan, how, target=4.5, calibrated=True, fixed_bytes=0)
    report = Report()
    layers = list(
        compress_model(source, plan, how, controller, TableBank(), stream=stream, report=report)
    )
    assert len(layers) == len(plan.tensors)
    assert all(0 < layer.errors.damping <= 1 for layer in layers)
    assert set(report.damping) == {r.name for r in layers if r.errors.damping > 0.001}
