import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nwc.compression.plan import make_plan
from nwc.compression.recorder import InputRecorder
from nwc.compression.source import SourceCheckpoint
from nwc.compression.stream import BlockStream
from nwc.compression.unit import forward
from nwc.errors import FormatError


def stream_of(folder, windows=32, context=16, **options):
    source = SourceCheckpoint(folder)
    plan = make_plan(source)
    tokens = torch.randint(256, (windows, context), generator=torch.Generator().manual_seed(0))
    return plan, tokens, BlockStream(source, plan.skeleton, tokens, **options)


def groups_of(plan, stream, tmp_path, on_progress=lambda note: None):
    """The groups of every block, from a pass over the whole model."""
    features = stream.features(tmp_path / "0.bin")
    stream.embed(features)
    for number in range(len(plan.skeleton.blocks)):
        target = stream.features(tmp_path / f"{number + 1}.bin")
        with stream.block(number) as block:
            recorder = InputRecorder(block.module, plan.units[number])
            forward(block, features, target, on_progress)
            yield recorder.close()
        features = target


def by_hooks(folder, plan, tokens):
    """Mean of x x^T for every planned tensor, from the whole model at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    found = {}

    def keep(name):
        def hook(_module, args):
            x = args[0].float().flatten(0, -2)
            found[name] = x.T @ x / len(x)

        return hook

    for tensor in plan.tensors:
        path = f"{plan.skeleton.blocks_path}.{tensor.block}.{tensor.module}"
        model.get_submodule(path).register_forward_pre_hook(keep(tensor.key))
    with torch.no_grad():
        model(input_ids=tokens)
    return found


@pytest.mark.parametrize("name", ["llama", "untied_llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [16, 64, 10_000])
def test_hessians_are_those_of_the_whole_model(request, name, batch_tokens, tmp_path):
    folder = request.getfixturevalue(name)
    plan, tokens, stream = stream_of(folder, batch_tokens=batch_tokens)
    expected = by_hooks(folder, plan, tokens)
    seen = []
    for groups in groups_of(plan, stream, tmp_path):
        for group in groups:
            assert group.hessian.tokens == tokens.numel()
            H = group.hessian.finish()
            for tensor in group.tensors:
                scale = expected[tensor.key].abs().max()
                # Activations are BF16: another batch size rounds them differently.
                assert (H - expected[tensor.key]).abs().max() < 0.02 * scale, tensor.key
                seen.append(tensor.key)
    assert sorted(seen) == sorted(t.key for t in plan.tensors)


def test_layers_that_share_their_input_are_one_group(llama, tmp_path):
    plan, _, stream = stream_of(llama)
    for groups in groups_of(plan, stream, tmp_path):
        names = [[t.key.split(".")[-2] for t in group.tensors] for group in groups]
        assert names == [
            ["q_proj", "k_proj", "v_proj"],
            ["o_proj"],
            ["gate_proj", "up_proj"],
            ["down_proj"],
        ]


def test_one_block_in_memory_at_a_time(llama, tmp_path):
    plan, _, stream = stream_of(llama)
    resident = []

    def watch(_note):
        blocks = plan.skeleton.blocks
        resident.append(sum(any(not p.is_meta for p in b.parameters()) for b in blocks))

    assert sum(1 for _ in groups_of(plan, stream, tmp_path, watch)) == 3
    assert set(resident) == {1}
    assert len(resident) == 3 * stream.batches
    assert all(p.is_meta for p in plan.skeleton.model.parameters())


@pytest.mark.parametrize(
    ("windows", "batch_tokens", "batches"), [(48, 10_000, 16), (48, 32, 24), (6, 10_000, 6)]
)
def test_batches_are_equal_and_enough_to_hold_some_out(llama, windows, batch_tokens, batches):
    _, _, stream = stream_of(llama, windows=windows, batch_tokens=batch_tokens)
    assert stream.batches == batches


def test_weights_that_are_not_numbers(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "copy")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.input_layernorm.weight"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    _, _, stream = stream_of(folder)
    with pytest.raises(FormatError, match=r"layers\.0\.input_layernorm\.weight has 1 .* NaN"):
        stream.embed(stream.features(tmp_path / "0.bin"))
