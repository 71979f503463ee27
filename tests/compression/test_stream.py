import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nwc.compression.plan import make_plan
from nwc.compression.source import SourceCheckpoint
from nwc.compression.stream import BlockStream
from nwc.errors import FormatError


def stream_of(folder, windows=8, context=16, **options):
    source = SourceCheckpoint(folder)
    plan = make_plan(source)
    tokens = torch.randint(256, (windows, context), generator=torch.Generator().manual_seed(0))
    return plan, tokens, BlockStream(source, plan.skeleton, tokens, **options)


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
def test_hessians_are_those_of_the_whole_model(request, name, batch_tokens):
    folder = request.getfixturevalue(name)
    plan, tokens, stream = stream_of(folder, batch_tokens=batch_tokens)
    expected = by_hooks(folder, plan, tokens)
    seen = []
    for groups in stream.groups(plan.tensors):
        for group in groups:
            assert group.hessian.tokens == tokens.numel()
            H = group.hessian.finish()
            for tensor in group.tensors:
                scale = expected[tensor.key].abs().max()
                # Activations are BF16: another batch size rounds them differently.
                assert (H - expected[tensor.key]).abs().max() < 0.02 * scale, tensor.key
                seen.append(tensor.key)
    assert sorted(seen) == sorted(t.key for t in plan.tensors)


def test_layers_that_share_their_input_are_one_group(llama):
    plan, _, stream = stream_of(llama)
    for groups in stream.groups(plan.tensors):
        names = [[t.key.split(".")[-2] for t in group.tensors] for group in groups]
        assert names == [
            ["q_proj", "k_proj", "v_proj"],
            ["o_proj"],
            ["gate_proj", "up_proj"],
            ["down_proj"],
        ]


def test_one_block_in_memory_at_a_time(llama):
    plan, _, stream = stream_of(llama)
    resident = []

    def watch():
        blocks = plan.skeleton.blocks
        resident.append(sum(any(not p.is_meta for p in b.parameters()) for b in blocks))

    calls = sum(1 for _ in stream.groups(plan.tensors, watch))
    assert calls == 3
    assert set(resident) == {1}
    assert len(resident) == 3 * stream.batches
    assert all(p.is_meta for p in plan.skeleton.model.parameters())


def test_batches_are_equal(llama):
    _, _, stream = stream_of(llama, windows=6, batch_tokens=5 * 16)
    assert stream.batches == 2


def test_weights_that_are_not_numbers(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "copy")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    plan, _, stream = stream_of(folder)
    with pytest.raises(FormatError, match=r"model\.norm\.weight has NaN.*repair"):
        next(stream.groups(plan.tensors))
