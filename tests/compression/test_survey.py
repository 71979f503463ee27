"""What the survey sees, block by block, is what the whole model would show at once."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.calibration.hessian import HessianAccumulator
from nwc.compression.experts import WATCHER
from nwc.compression.plan import make_plan
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import WorkFolder
from nwc.compression.stream import BlockStream
from nwc.compression.survey import Survey, read_survey
from nwc.numerics.ldlq import ldl


@pytest.fixture
def survey(tmp_path):
    """Makes a survey and says where its result will be."""
    opened = []

    def make(folder, keep=(), name="work"):
        source = SourceCheckpoint(folder)
        plan = make_plan(source, keep)
        generator = torch.Generator().manual_seed(1)
        windows = torch.randint(80, (16, 24), generator=generator)
        work = WorkFolder(tmp_path / name)
        work.open({}, restart=False)
        opened.append(work)
        return Survey(plan, BlockStream(source, plan.skeleton, windows), work, seed=3), windows

    yield make
    for work in opened:
        work.close(remove=False)


def whole_model(folder, plan, windows):
    """Row moments and Hessians from one backward pass through everything."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    moments, hessians = {}, {}
    path = plan.skeleton.blocks_path
    for t in plan.tensors:
        if t.role:
            continue
        module = model.get_submodule(f"{path}.{t.block}.{t.module}")
        hessians[t.name] = HessianAccumulator(t.n, t.name)

        def hook(_module, inputs, output, t=t):
            first = output[0] if isinstance(output, tuple) else output
            hessians[t.name].add(inputs[0])
            first.register_hook(
                lambda g: moments.update(
                    {t.name: moments.get(t.name, 0) + g.flatten(0, -2).square().sum(0)}
                )
            )

        module.register_forward_hook(hook)
    generator = torch.Generator().manual_seed(3)
    for window in windows:
        logits = model(window[None]).logits[0]
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return {k: v / windows.numel() for k, v in moments.items()}, hessians


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_moments_and_hessians_are_those_of_the_whole_model(name, survey, request, tmp_path):
    # In FP32: rounded features would draw other labels.
    folder = tmp_path / name
    whole = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(name))
    whole.float().save_pretrained(folder)
    looked, windows = survey(folder)
    looked.run()
    found = read_survey(looked.work, by_row=True)
    moments, hessians = whole_model(folder, looked.plan, windows)
    assert set(found) == {t.name for t in looked.plan.tensors}
    for t in looked.plan.tensors:
        seen = found[t.name]
        assert (len(seen.row_weights), len(seen.d)) == (t.m, t.n)
        torch.testing.assert_close(seen.row_weights, moments[t.name], rtol=2e-3, atol=1e-12)
        d = ldl(hessians[t.name].finish()).d
        torch.testing.assert_close(seen.d.log(), d.log(), rtol=0, atol=0.05)
    assert list((looked.work.path / "survey").iterdir()) == []


def test_experts_are_told_apart(experts, survey):
    looked, _ = survey(experts)
    looked.run()
    found = read_survey(looked.work, by_row=True)
    roles = [t for t in looked.plan.tensors if t.role]
    assert roles
    for t in roles:
        seen = found.get(t.name)
        assert seen is None or (seen.row_weights > 0).any()
        assert seen is None or len(seen.row_weights) == t.m
    assert len([t for t in roles if t.name in found]) > len(roles) / 2
    with looked.stream.block(0) as block:
        assert not any(hasattr(module, WATCHER) for module in block.module.modules())


def test_without_rows_all_have_the_mean(llama, survey):
    looked, _ = survey(llama)
    looked.run()
    by_row = read_survey(looked.work, by_row=True)
    for name, seen in read_survey(looked.work, by_row=False).items():
        mean = by_row[name].row_weights.mean()
        torch.testing.assert_close(seen.row_weights, mean.expand(len(seen.row_weights)))


def test_blocks_that_are_kept_are_passed_through(llama, survey):
    whole, _ = survey(llama)
    whole.run()
    part, _ = survey(llama, keep=("model.layers.0.*", "model.layers.2.*"), name="part")
    part.run()
    expected = read_survey(whole.work, by_row=True)
    found = read_survey(part.work, by_row=True)
    assert {name.split(".")[2] for name in found} == {"1"}
    for name, seen in found.items():
        assert torch.equal(seen.row_weights, expected[name].row_weights)
        assert torch.equal(seen.d, expected[name].d)


@pytest.mark.parametrize("stop", range(1, 14, 2))
def test_a_stopped_survey_goes_on(llama, survey, monkeypatch, stop):
    whole, _ = survey(llama)
    whole.run()
    part, _ = survey(llama, name="part")
    steps = []

    def interrupt(function):
        def call(*args, **kwargs):
            steps.append(1)
            if len(steps) == stop:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    # Between any two files that it writes, the run is stopped once.
    with monkeypatch.context() as patched:
        patched.setattr(part.work, "write_tensors", interrupt(part.work.write_tensors))
        patched.setattr(part, "_loss", interrupt(part._loss))
        patched.setattr(part, "_backward", interrupt(part._backward))
        try:
            part.run()
        except KeyboardInterrupt:
            assert len(steps) == stop
    part.run()
    expected = read_survey(whole.work, by_row=True)
    for name, seen in read_survey(part.work, by_row=True).items():
        assert torch.equal(seen.row_weights, expected[name].row_weights)
        assert torch.equal(seen.d, expected[name].d)
