"""Options of `nwc compress` that decide how a run goes: target, forecast, inputs, report."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

QUICK = ["--calibration-tokens", "2048", "--recovery-steps", "4"]


@pytest.mark.parametrize("model", ["untied_llama", "bare"])
@pytest.mark.parametrize("bits", [8.0, 9.5])
def test_file_bits_count_the_whole_folder(nwc, request, tmp_path, model, bits):
    source = shutil.copytree(request.getfixturevalue(model), tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    out = tmp_path / "out"
    options = ["--data-free", "--file-bits", bits, "--json"]
    if model == "untied_llama":
        options += ["--keep", "lm_head*"]
    made = nwc("compress", source, "--output", out, *options)
    if made.code:  # the report's files alone are more than that on a model this small
        assert "--file-bits" in made.err or "cannot be met" in made.err
        return
    size = sum(p.stat().st_size for p in out.iterdir())
    assert made.json["file_bytes"] == size
    parameters = made.json["compressed_parameters"] + made.json["kept_parameters"]
    assert 8 * size / parameters == pytest.approx(bits, rel=0.005)


def test_file_bits_of_a_larger_model(nwc, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer{i}.weight": torch.randn(256, 320, generator=generator) for i in range(6)}
    tensors["norm"] = torch.ones(5000)
    save_file(tensors, source / "model.safetensors")
    for bits in (3.0, 5.5):
        out = tmp_path / f"out{bits}"
        made = nwc(
            "compress", source, "--output", out, "--data-free", "--file-bits", bits, "--json"
        )
        assert made.code == 0, made.err
        size = sum(p.stat().st_size for p in out.iterdir())
        assert 8 * size / (6 * 256 * 320 + 5000) == pytest.approx(bits, rel=0.005)


def test_dry_run_writes_nothing(nwc, llama, text, tmp_path):
    shown = nwc(
        "compress", llama, "--output", tmp_path / "out", "--calibration", text, "--dry-run"
    )
    assert shown.code == 0
    for part in (
        "model.layers.2.mlp.down_proj.weight",
        "embedding or head",
        "peak memory",
        "time",
    ):
        assert part in shown.out
    assert not list(tmp_path.iterdir())


def test_dry_run_as_json(nwc, experts, text, tmp_path):
    options = ["--calibration", text, "--dry-run", "--json"]
    found = nwc("compress", experts, "--output", tmp_path / "out", *options).json
    assert found["order"] == "experts"
    assert found["recovery"] == (experts.name != "gpt_oss")
    assert found["compressed_parameters"] == sum(
        t["shape"][0] * t["shape"][1] for t in found["tensors"]
    )
    assert found["memory_bytes"] > 10**8
    assert found["disk_bytes"] > 0
    assert found["seconds"] > 0


def test_features_of_the_compressed_model(nwc, llama, text, tmp_path):
    out = tmp_path / "out"
    options = ["--calibration", text, *QUICK, "--features", "compressed"]
    assert nwc("compress", llama, "--output", out, *options).code == 0
    assert json.loads((out / "report.json").read_text())["features"] == "compressed"


def test_without_recovery_kept_tensors_are_as_they_were(nwc, llama, text, tmp_path):
    out = tmp_path / "out"
    options = ["--calibration", text, *QUICK, "--no-recovery"]
    assert nwc("compress", llama, "--output", out, *options).code == 0
    original, found = load_file(llama / "model.safetensors"), load_file(out / "model.safetensors")
    norms = [key for key in original if "norm" in key]
    assert norms
    assert all(torch.equal(original[key], found[key]) for key in norms)
    report = json.loads((out / "report.json").read_text())
    assert report["recovery"] is False
    assert report["blocks"] == []


def test_what_the_user_keeps_is_not_tuned(nwc, llama, text, tmp_path):
    out = tmp_path / "out"
    keep = ("--keep", "*input_layernorm*", "--keep", "*.1.mlp.up_proj*")
    made = nwc("compress", llama, "--output", out, "--calibration", text, *QUICK, *keep)
    assert made.code == 0, made.err
    original, found = load_file(llama / "model.safetensors"), load_file(out / "model.safetensors")
    for key in ("model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"):
        assert torch.equal(original[key], found[key])
    tuned = "model.layers.0.post_attention_layernorm.weight"
    assert not torch.equal(original[tuned], found[tuned])


def test_report_and_card(nwc, llama, text, tmp_path):
    source, out = shutil.copytree(llama, tmp_path / "source"), tmp_path / "out"
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nThe original's card.\n")
    made = nwc("compress", source, "--output", out, "--calibration", text, *QUICK)
    assert made.code == 0
    report = json.loads((out / "report.json").read_text())
    original = load_file(source / "model.safetensors")
    named = [t["name"] for t in report["tensors"]] + [t["name"] for t in report["kept"]]
    assert sorted(named) == sorted(original)  # every tensor once
    assert report["model"]["license"] == "cc-by-4.0"
    assert report["hash"] in made.out
    assert report["file_bytes"] == sum(p.stat().st_size for p in out.iterdir())
    assert [g["name"] for g in report["blocks"][0]["groups"]] == [
        "q_proj, k_proj, v_proj", "o_proj", "gate_proj, up_proj",
    ]  # fmt: skip
    card = (out / "README.md").read_text()
    assert 'license: "cc-by-4.0"' in card
    assert report["command"] in card
    assert report["hash"] in card
    assert (out / "original-README.md").read_text().endswith("The original's card.\n")
    page = tmp_path / "out-report.html"
    assert report["hash"] in page.read_text()
    again = nwc("compress", source, "--output", tmp_path / "other", "--data-free")
    assert again.code == 0
    refused = nwc("report", out)
    assert refused.code == 2
    assert "--overwrite" in refused.err


def test_exchanged_streams_are_found(nwc, compressed, tmp_path):
    copy = shutil.copytree(compressed, tmp_path / "copy")
    file = copy / "model.safetensors"
    tensors = load_file(file)
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        metadata = json.loads(handle.read(length))["__metadata__"]
    one, other = (f"model.layers.{i}.self_attn.o_proj.weight.nwc" for i in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, file, metadata)
    found = nwc("verify", copy)
    assert found.code == 1
    assert "damaged, missing or exchanged" in found.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--file-bits", "1"], "--file-bits 1 leaves"),
        (["--file-bits", "5", "--bits", "4"], "--bits and --file-bits exclude"),
        (["--recovery", "--data-free"], "--recovery wants --calibration"),
        (["--features", "compressed", "--data-free"], "wants --calibration"),
        (["--workers", "0"], "--workers is 0"),
        (["--ray", "auto", "--workers", "2"], "exclude each other"),
        (["--recovery-steps", "0"], "--recovery-steps 0"),
    ],
)
def test_wrong_options(nwc, llama, tmp_path, options, message):
    found = nwc("compress", llama, "--output", tmp_path / "out", *options)
    assert found.code == 2
    assert message in found.err
    assert not list(tmp_path.iterdir())


def test_workers_wait_for_compressed_features(nwc, llama, text, tmp_path):
    options = ["--features", "compressed", "--calibration", text, *QUICK]
    assert nwc("compress", llama, "--output", tmp_path / "one", *options).code == 0
    two = nwc("compress", llama, "--output", tmp_path / "two", "--workers", "2", *options)
    assert two.code == 0
    assert "every block waits for the one before it" in two.err
    one, other = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


@pytest.mark.parametrize("block", [0, 1, 2])
def test_blocks_between_compressed_ones_may_be_kept(nwc, llama, text, tmp_path, block):
    out = tmp_path / "out"
    keep = ("--keep", f"model.layers.{block}.*")
    made = nwc("compress", llama, "--output", out, "--calibration", text, *QUICK, *keep)
    assert made.code == 0, made.err
    original, found = load_file(llama / "model.safetensors"), load_file(out / "model.safetensors")
    kept = [key for key in original if f".layers.{block}." in key]
    assert all(torch.equal(original[key], found[key]) for key in kept)
    assert json.loads((out / "report.json").read_text())["features"] == "compressed"


def test_one_window_is_too_little_to_tune_with(nwc, llama, text, tmp_path):
    options = ["--calibration", text, "--calibration-tokens", "100", "--context", "100"]
    made = nwc("compress", llama, "--output", tmp_path / "out", *options)
    assert made.code == 0
    assert "without fine-tuning: 100 tokens make one window" in made.err


def test_distilled_norms_are_in_the_file(nwc, llama, text, tmp_path):
    out, plain = tmp_path / "out", tmp_path / "plain"
    how = ["--calibration", text, "--calibration-tokens", "2048", "--no-recovery", "--bits", "3"]
    made = nwc("compress", llama, "--output", out, *how, "--distill-tokens", "2048")
    assert made.code == 0, made.err
    assert nwc("compress", llama, "--output", plain, *how).code == 0
    facts = json.loads((out / "report.json").read_text())["distillation"]
    assert facts["after"] <= facts["before"]
    original, found = load_file(llama / "model.safetensors"), load_file(out / "model.safetensors")
    without = load_file(plain / "model.safetensors")
    norms = [key for key in original if "norm" in key]
    assert any(not torch.equal(original[key], found[key]) for key in norms) == (facts["steps"] > 0)
    assert all(torch.equal(original[key], without[key]) for key in norms)
    streams = [key for key in without if key.endswith(".nwc")]
    assert all(torch.equal(without[key], found[key]) for key in streams)  # not a bit is added
    assert nwc("verify", out).code == 0


def test_distillation_wants_text(nwc, llama, tmp_path):
    out = tmp_path / "out"
    made = nwc("compress", llama, "--output", out, "--data-free", "--distill-tokens", "100")
    assert made.code == 2
    assert "--distill-tokens wants --calibration" in made.err


@pytest.mark.parametrize(
    "options",
    [
        ["--trellis", "0"],
        ["--trellis", "32", "--sweeps", "1"],
        ["--preset", "light"],
        ["--waterfill", "columns"],
    ],
)
def test_ways_to_quantise(nwc, llama, text, tmp_path, options):
    out = tmp_path / "out"
    how = ["--calibration", text, "--calibration-tokens", "2048", "--no-recovery", "--bits", "4"]
    made = nwc("compress", llama, "--output", out, *how, *options, "--json")
    assert made.code == 0, made.err
    assert abs(made.json["bits_per_parameter"]["tensors"] / 4 - 1) < 0.005
    command = json.loads((out / "report.json").read_text())["command"]
    assert " ".join(options) in command
    assert nwc("verify", out).code == 0
