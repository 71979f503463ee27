"""Models of images through the whole command."""

import json
import shutil

import numpy as np
import pytest

QUICK = ("--calibration-tokens", "384", "--recovery-steps", "2", "--survey-tokens", "256")


def fails(outcome, *words):
    assert outcome.code == 2, outcome
    lines = [x for x in outcome.err.strip().splitlines() if not x.startswith("note:")]
    assert len(lines) == 1, outcome.err
    for word in words:
        assert word in outcome.err
    return True


@pytest.fixture
def compress(nwc, tmp_path):
    def call(model, *flags, bits="5"):
        out = tmp_path / f"{model.name}-{len(list(tmp_path.iterdir()))}"
        return out, nwc("compress", model, "--output", out, "--bits", bits, *flags)

    return call


@pytest.mark.parametrize("method", ["nwc", "gptq"])
def test_classifier(nwc, compress, vit, halves, method):
    even, odd = halves
    out, outcome = compress(vit, "--calibration", even, "--method", method, *QUICK)
    assert outcome.code == 0, outcome.err
    report = json.loads((out / "report.json").read_text())
    assert report["calibration"]["context"] == 16  # patches
    assert report["calibration"]["tokens"] == 16 * 16  # of 24 images, in equal batches
    assert all(t["hessian_error"] is not None for t in report["tensors"])
    assert report["recovery"] == (method == "nwc")
    if method == "nwc":
        assert nwc("verify", out).code == 0
        assert report["bits_per_parameter"]["tensors"] == pytest.approx(5, abs=0.05)
    found = nwc("eval", out, "--images", odd, "--reference", vit, "--json").json
    assert found["images"] == 24
    assert found["classes"] == 3
    assert found["classifier"] == "head"
    assert 0 < found["kl_divergence"] < 0.5
    assert found["top1_agreement"] > 0.5
    same = nwc("eval", vit, "--images", odd, "--reference", vit, "--json").json
    assert same["kl_divergence"] == 0
    assert same["accuracy"] == same["reference_accuracy"] == found["reference_accuracy"]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_zero_shot(nwc, compress, halves, tmp_path, request, name):
    model = request.getfixturevalue(name)
    even, odd = halves
    out, outcome = compress(model, "--calibration", even, *QUICK, bits="6.5")
    assert outcome.code == 0, outcome.err
    assert "text_model.encoder.layers is compressed data-free" in outcome.err
    assert "steps follow columns alone" in outcome.err
    report = json.loads((out / "report.json").read_text())
    seen = {t["name"].split(".")[0]: t["hessian_error"] for t in report["tensors"]}
    assert seen["text_model"] is None
    assert seen["vision_model"] is not None
    found = nwc("eval", out, "--images", odd, "--reference", model, "--json").json
    assert found["classifier"] == "zero-shot"
    assert found["classes"] == 3
    assert 0 < found["kl_divergence"] < 0.1
    names = tmp_path / "names.txt"
    names.write_text("sky\n\ngrass\nblood\nsnow\n")
    flags = ("--class-names", names, "--prompt", "the colour of {}", "--prompt", "{}")
    other = nwc("eval", out, "--images", odd, *flags, "--limit", "10", "--json").json
    assert (other["classes"], other["images"]) == (4, 10)


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_a_head_for_an_encoder_without_one(nwc, compress, dinov2, halves, probe):
    even, odd = halves
    out, outcome = compress(dinov2, "--data-free")
    assert outcome.code == 0, outcome.err
    flags = ("--probe-images", even, "--probe", probe, "--reference", dinov2, "--json")
    found = nwc("eval", out, "--images", odd, *flags).json
    assert found["classifier"] == probe
    # Even a random encoder tells three colours apart, and goes on to do so.
    assert found["reference_accuracy"] > 0.9
    assert found["accuracy"] > 0.9


def test_encoder_with_calibration_and_a_plan(nwc, compress, dinov2, images):
    out, outcome = compress(dinov2, "--calibration", images, *QUICK, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "16 images of 16 patches" in outcome.out
    assert not out.exists()
    out, outcome = compress(dinov2, "--calibration", images, *QUICK, "--workers", "2")
    assert outcome.code == 0, outcome.err
    assert nwc("verify", out).code == 0


def test_images_of_another_size(nwc, compress, vit, images, tmp_path):
    model = shutil.copytree(vit, tmp_path / "model")
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"do_resize": False}))
    with np.load(images) as arrays:
        big = np.repeat(np.repeat(arrays["images"], 2, axis=1), 2, axis=2)
        np.savez(tmp_path / "big.npz", images=big, labels=arrays["labels"])
    said = "images come as 3 x 32 x 32, the model takes 3 x 16 x 16"
    fails(nwc("eval", model, "--images", tmp_path / "big.npz"), said, "resize")
    fails(compress(model, "--calibration", tmp_path / "big.npz")[1], said, "resize")
    assert nwc("eval", vit, "--images", tmp_path / "big.npz").code == 0  # whose processor resizes


def test_labels(nwc, vit, dinov2, images, halves, tmp_path):
    with np.load(images) as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    np.savez(tmp_path / "bare.npz", images=pixels)
    fails(nwc("eval", vit, "--images", tmp_path / "bare.npz"), "has no labels")
    np.savez(tmp_path / "far.npz", images=pixels, labels=labels + 7)
    fails(nwc("eval", vit, "--images", tmp_path / "far.npz"), "the model has 3 classes")
    np.savez(tmp_path / "few.npz", images=pixels, labels=labels[:9])
    fails(nwc("eval", vit, "--images", tmp_path / "few.npz"), "an integer for each of 48")
    np.savez(tmp_path / "named.npz", images=pixels, labels=labels, classes=list("abcd"))
    fails(nwc("eval", vit, "--images", tmp_path / "named.npz"), "has 4 classes", "the same")
    fails(nwc("eval", dinov2, "--images", images), "no classes of its own", "--probe-images")
    again = nwc("eval", dinov2, "--images", images, "--probe-images", images)
    fails(again, "judged on others")


def test_classes_in_another_order(nwc, vit, images, tmp_path):
    with np.load(images) as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    order = ["red", "blue", "green"]  # the model's: blue, green, red
    other = np.array([1, 2, 0])[labels]
    np.savez(tmp_path / "other.npz", images=pixels, labels=other, classes=order)
    found = nwc("eval", vit, "--images", tmp_path / "other.npz", "--json").json
    assert found["accuracy"] == nwc("eval", vit, "--images", images, "--json").json["accuracy"]


def test_names_of_classes(nwc, clip, images, tmp_path):
    with np.load(images) as arrays:
        np.savez(tmp_path / "plain.npz", images=arrays["images"], labels=arrays["labels"])
    fails(nwc("eval", clip, "--images", tmp_path / "plain.npz"), "--class-names")
    fails(nwc("eval", clip, "--images", images, "--prompt", "a photo"), "has no {}")
    missing = nwc("eval", clip, "--images", images, "--class-names", tmp_path / "no.txt")
    fails(missing, "is not a file")


def test_the_wrong_kind_of_model(nwc, compress, llama, vit, images, text):
    fails(nwc("eval", llama, "--images", images), "takes text: give --text, not --images")
    fails(nwc("eval", vit, "--text", text), "models of images take --images")
    fails(compress(llama, "--calibration", images)[1], "language model", "calibrate it with text")
    fails(compress(vit, "--calibration", text)[1], "is no images: wanted an .npz file")
    fails(compress(vit, "--calibration", images, "--context", "8")[1], "--context is for text")
    wrong = compress(vit, "--calibration", images, "--distill-tokens", "64")[1]
    fails(wrong, "is for language models")
    out, outcome = compress(vit, "--data-free")
    assert outcome.code == 0
    fails(nwc("eval", out, "--text", text), "which takes images: give --images")


def test_flags_that_exclude_each_other(nwc, vit, images, text):
    fails(nwc("eval", vit, "--images", images, "--text", text), "take no --text")
    fails(nwc("eval", vit, "--text", text, "--prompt", "{}"), "want --images")
    fails(nwc("eval", vit), "nothing to evaluate", "--images")


def test_a_folder_without_an_image_processor(nwc, compress, vit, images, tmp_path):
    model = shutil.copytree(vit, tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    fails(nwc("eval", model, "--images", images), "no image processor", "preprocessor_config.json")
    fails(compress(model, "--calibration", images)[1], "no image processor")
