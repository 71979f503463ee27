import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nwc.compression.plan import make_plan, require_skeleton
from nwc.compression.source import SourceCheckpoint
from nwc.errors import ConfigError, FormatError


def plan_of(folder, *keep):
    source = SourceCheckpoint(folder)
    plan = make_plan(source, keep)
    # Coverage: each tensor is in exactly one of the lists.
    named = [t.key for t in plan.tensors] + list(plan.kept)
    assert sorted(named) == sorted(source.shapes)
    return plan


def changed(folder, tmp_path, **tensors):
    copy = shutil.copytree(folder, tmp_path / "changed")
    file = copy / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})
    return copy


@pytest.mark.parametrize("name", ["llama", "untied_llama"])
def test_llama(request, name):
    plan = plan_of(request.getfixturevalue(name))
    blocks = len(plan.skeleton.blocks)
    assert len(plan.tensors) == 7 * blocks
    assert [t.block for t in plan.tensors] == sorted(t.block for t in plan.tensors)
    assert not any(t.transposed for t in plan.tensors)
    down = next(t for t in plan.tensors if t.key == "model.layers.1.mlp.down_proj.weight")
    assert (down.m, down.n, down.block, down.module) == (64, 144, 1, "mlp.down_proj")
    assert plan.kept["model.embed_tokens.weight"] == "embedding or head"
    assert ("lm_head.weight" in plan.kept) == (name == "untied_llama")
    assert plan.kept["model.norm.weight"] == "not a matrix"
    assert plan.notes == []


def test_gpt2_is_transposed(gpt2):
    plan = plan_of(gpt2)
    attention = next(t for t in plan.tensors if t.key.endswith("h.0.attn.c_attn.weight"))
    assert (attention.m, attention.n, attention.transposed) == (192, 64, True)
    assert len(plan.tensors) == 4 * 2
    assert {k for k, why in plan.kept.items() if why == "embedding or head"} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }


def test_names_with_and_without_the_prefix_of_the_base_model(gpt2, tmp_path):
    copy = shutil.copytree(gpt2, tmp_path / "copy")
    file = copy / "model.safetensors"
    bare_names = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    save_file(bare_names, file, {"format": "pt"})
    assert len(plan_of(copy).tensors) == 8


def test_bare_folder(bare):
    plan = plan_of(bare)
    assert [t.key for t in plan.tensors] == ["encoder.weight", "decoder.weight"]
    assert plan.skeleton is None
    assert plan.notes == ["planned from tensor shapes alone: no config.json"]
    with pytest.raises(ConfigError, match=r"cannot calibrate: .* use --data-free"):
        require_skeleton(plan)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.zeros(4, 4), "the model has no such parameter"),
        (torch.zeros(2, 4, 4), "the model has no such parameter"),
    ],
)
def test_what_would_be_skipped_is_an_error(llama, tmp_path, tensor, why):
    folder = changed(llama, tmp_path, stray=tensor)
    with pytest.raises(ConfigError, match=rf"stray \[.*\]: {why}(.|\n)*--keep 'stray'"):
        make_plan(SourceCheckpoint(folder))
    assert plan_of(folder, "stray").kept["stray"] == "--keep stray"


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, 0, 4), torch.zeros(3, 0), torch.ones(3, 3).int()]
)
def test_bare_tensors_that_are_no_weights(bare, tmp_path, tensor):
    folder = changed(bare, tmp_path, stray=tensor)
    with pytest.raises(ConfigError, match=r"stray .*wanted float matrices"):
        make_plan(SourceCheckpoint(folder))
    assert len(plan_of(folder, "stray").tensors) == 2


def test_keep(llama):
    plan = plan_of(llama, "*layers.0*", "*down_proj*")
    assert len(plan.tensors) == 2 * 6
    with pytest.raises(ConfigError, match="matches none"):
        plan_of(llama, "*no_such*")
    with pytest.raises(FormatError, match="nothing to compress"):
        plan_of(llama, "*")


def test_configs_that_do_not_fit(llama, tmp_path, change_config):
    folder = shutil.copytree(llama, tmp_path / "copy")
    change_config(folder, intermediate_size=160)
    with pytest.raises(FormatError, match=r"asks for \[160, 64\]; the config belongs"):
        make_plan(SourceCheckpoint(folder))
    change_config(folder, intermediate_size=144, num_hidden_layers=4)
    plan = plan_of(folder, "*embed*")
    assert plan.skeleton is None
    assert "parameters of the model are missing" in plan.notes[0]


def test_models_that_transformers_does_not_know(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "copy")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    assert "names no causal language model" in plan_of(folder).notes[0]


def test_quantised_models_are_refused(llama, tmp_path, change_config):
    folder = shutil.copytree(llama, tmp_path / "copy")
    change_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(FormatError, match=r"already quantised \(gptq\); compress the original"):
        make_plan(SourceCheckpoint(folder))


def test_planning_holds_no_weights(llama):
    plan = plan_of(llama)
    assert all(p.is_meta for p in plan.skeleton.model.parameters())
    assert json.dumps(sorted(plan.skeleton.keys))  # names only
