"""Encoders of images: their blocks by structure, and how images go through them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SwinConfig, SwinForImageClassification

from nwc.compression.plan import make_plan
from nwc.compression.recorder import InputRecorder
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import WorkFolder
from nwc.compression.stream import BlockStream
from nwc.compression.survey import Survey, read_survey
from nwc.compression.unit import forward
from nwc.integrations.images import load_image_model

FAMILIES = ("vit", "dinov2", "clip", "siglip")


@pytest.fixture(params=FAMILIES)
def folder(request):
    return request.getfixturevalue(request.param)


def plan_of(folder):
    source = SourceCheckpoint(folder)
    plan = make_plan(source)
    assert sorted([t.key for t in plan.tensors] + list(plan.kept)) == sorted(source.shapes)
    return plan, source


@pytest.fixture
def pixels():
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_matrices_of_blocks_are_planned_and_nothing_else(folder):
    plan, source = plan_of(folder)
    assert plan.notes == []
    assert plan.skeleton.takes_images
    assert plan.skeleton.classifies == (folder.name == "vit")
    blocks = [t for t in plan.tensors if t.block is not None]
    assert len(blocks) == 2 * 6
    assert {t.block for t in blocks} == {0, 1}
    assert all(source.shapes[t.key] == (t.m, t.n) for t in plan.tensors)
    others = [t.key for t in plan.tensors if t.block is None]
    if folder.name in ("clip", "siglip"):
        assert len(others) == 6
        assert all(key.startswith("text_model.encoder.layers.0.") for key in others)
        assert [t.block for t in plan.tensors[:6]] == [None] * 6  # before all blocks
        assert plan.skeleton.further_blocks == ("text_model.encoder.layers",)
        assert plan.skeleton.body_path == "vision_model"
    else:
        assert others == []
    kept = {k for k, why in plan.kept.items() if why == "embedding or head"}
    wanted = {
        "vit": {"classifier.weight", "vit.embeddings.cls_token"},
        "dinov2": {"embeddings.mask_token", "embeddings.position_embeddings"},
        "clip": {"visual_projection.weight", "text_projection.weight"},
        "siglip": {"vision_model.head.attention.in_proj_weight", "text_model.head.weight"},
    }[folder.name]
    assert wanted <= kept


def test_buffers_that_old_checkpoints_hold(clip, tmp_path):
    copy = shutil.copytree(clip, tmp_path / "copy")
    file = copy / "model.safetensors"
    ids = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file(load_file(file) | ids, file, {"format": "pt"})
    plan, _ = plan_of(copy)
    assert plan.kept["vision_model.embeddings.position_ids"] == "no weight"


def test_blocks_that_are_not_alike_are_planned_from_shapes(tmp_path):
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    SwinForImageClassification(config).save_pretrained(tmp_path / "swin")
    plan, _ = plan_of(tmp_path / "swin")
    assert plan.skeleton is None
    assert "has no list of blocks that are alike" in plan.notes[0]


def hidden_states(folder, pixels):
    """What enters and leaves the blocks of the original, by hooks on the whole model."""
    model = load_image_model(folder, torch.bfloat16 if folder.name == "vit" else torch.float32)
    plan, _ = plan_of(folder)
    blocks = model.get_submodule(plan.skeleton.blocks_path)
    seen = []
    blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    for block in blocks:
        block.register_forward_hook(
            lambda _m, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    body = model.get_submodule(plan.skeleton.body_path)
    with torch.no_grad():
        body(pixel_values=pixels.to(model.dtype))
    return seen


def test_images_go_through_blocks_as_through_the_model(folder, pixels, tmp_path):
    plan, source = plan_of(folder)
    stream = BlockStream(source, plan.skeleton, pixels)
    assert stream.batches == 16
    expected = hidden_states(folder, pixels)
    here = stream.features(tmp_path / "0.bin")
    stream.embed(here)
    for number in range(len(stream.skeleton.blocks)):
        there = stream.features(tmp_path / f"{number + 1}.bin")
        unit = [t for t in plan.tensors if t.block == number]
        with stream.block(number) as block:
            recorder = InputRecorder(block.module, unit)
            forward(block, here, there, lambda note: None)
            groups = recorder.close()
        # Queries, keys and values share their input; every matrix has a Hessian of all tokens.
        assert sorted(len(group.tensors) for group in groups) == [1, 1, 1, 3]
        tokens = expected[0].shape[:-1].numel()
        assert all(group.hessian.tokens == tokens for group in groups)
        for file, wanted in ((here, expected[number]), (there, expected[number + 1])):
            found = torch.cat([file[i] for i in range(file.batches)])
            tolerance = 0.1 if found.dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
        here = there
    assert all(p.is_meta for p in stream.skeleton.model.parameters())


def test_gradients_of_a_classifier_by_brute_force(vit, pixels, tmp_path):
    plan, source = plan_of(vit)
    stream = BlockStream(source, plan.skeleton, pixels)
    work = WorkFolder(tmp_path / "work")
    work.open({}, restart=False)
    Survey(plan, stream, work, seed=0).run()
    found = read_survey(work, by_row=True)
    assert set(found) == {t.name for t in plan.tensors}

    # The same labels: drawn from the whole model's own distribution, batch by batch.
    model = load_image_model(vit)
    generator = torch.Generator().manual_seed(0)
    last = plan.tensors[-1]
    path = f"{plan.skeleton.blocks_path}.{last.block}.{last.module}"
    module = model.get_submodule(path)
    total, tokens = torch.zeros(last.m), 0
    for batch in pixels.split(2):
        outputs = []
        handle = module.register_forward_hook(lambda _m, _a, out, o=outputs: o.append(out))
        logits = model(pixel_values=batch).logits
        handle.remove()
        y = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
        loss = -logits.log_softmax(1).gather(1, y).sum()
        (g,) = torch.autograd.grad(loss, outputs[0])
        total += g.flatten(0, 1).square().sum(0)
        tokens += g.shape[:2].numel()
    mean = total / tokens
    got = found[last.name].row_weights
    # The stream's features are BF16.
    assert torch.nn.functional.cosine_similarity(got, mean, dim=0) > 0.98
    assert float(got.sum()) == pytest.approx(float(mean.sum()), rel=0.15)
    work.close(remove=True)
