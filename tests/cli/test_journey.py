"""A model goes through every verb, as a user would take it."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import nwc as package
from nwc.cli import main as cli

VERBS = ("compress", "decompress", "run", "eval", "inspect", "verify", "report", "train", "bench")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_defaults(nwc, verb):
    outcome = nwc(verb, "--help")
    assert outcome.code == 0
    assert "(default:" in outcome.out
    assert "Example: nwc" in outcome.out


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"nwc {package.__version__}\n"


def test_runs_as_a_module():
    found = subprocess.run(
        [sys.executable, "-m", "nwc", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("nwc ")


def test_inspect_accounts_for_every_byte(nwc, compressed):
    found = nwc("inspect", compressed, "--json").json
    assert found["file_bytes"] == sum(p.stat().st_size for p in compressed.iterdir())
    bits = found["bits_per_parameter"]
    parts = {"payload", "patches", "tables", "index", "scales", "levels", "codec", "headers"}
    assert sum(bits[part] for part in parts) == pytest.approx(bits["tensors"])
    parameters = found["compressed_parameters"] + found["kept_parameters"]
    assert bits["file"] == pytest.approx(8 * found["file_bytes"] / parameters)
    assert len(found["tensors"]) == 3 * 7
    for row in found["tensors"]:
        assert 0 < row["relative_error"] < 0.4
        assert 0 < row["hessian_error"] < 0.02
        assert row["bits_per_parameter"] > 0
    # The parts that belong to one tensor are in its row, what they share is in none.
    own = sum(row["bytes"] for row in found["tensors"])
    assert own < found["tensor_bytes"] < found["file_bytes"]


def test_inspect_for_people(nwc, compressed):
    outcome = nwc("inspect", compressed)
    assert "compressed tensors, all overheads" in outcome.out
    assert "model.layers.2.mlp.down_proj.weight" in outcome.out


def test_verify_reports_payload_and_ideal(nwc, compressed):
    found = nwc("verify", compressed, "--json").json
    assert found["ok"]
    rows = [row for row in found["tensors"] if "payload_bits" in row]
    assert len(rows) == 3 * 7
    # The states in the index hold up to 32 bits a lane of what is coded.
    for row in rows:
        assert row["payload_bits"] < 1.001 * row["ideal_bits"]
        assert row["payload_bits"] > row["ideal_bits"] - 32 * 16 * row["tiles"]


def test_eval_against_the_original(nwc, compressed, llama, text):
    arguments = ("--text", text, "--context", "64", "--max-tokens", "2048", "--json")
    found = nwc("eval", compressed, "--reference", llama, *arguments).json
    assert found["tokens"] == 2048 // 64 * 63
    assert 0 < found["kl_divergence"] < 0.2
    assert 0.7 < found["top1_agreement"] < 1
    alone = nwc("eval", llama, *arguments).json
    assert alone["perplexity"] == pytest.approx(found["reference_perplexity"])
    assert set(alone) == {"perplexity", "tokens", "context"}


def test_decompress_gives_an_ordinary_checkpoint(nwc, compressed, llama, text, tmp_path):
    out = tmp_path / "restored"
    assert nwc("decompress", compressed, "--output", out, "--dtype", "float32").code == 0
    original, restored = (
        load_file(llama / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    assert set(original) == set(restored)
    for key, value in restored.items():
        assert value.dtype == torch.float32
        error = (value - original[key].float()).norm() / original[key].float().norm()
        assert error < 0.4
        if "layers" not in key:
            assert error == 0
        elif "norm" in key:  # fine-tuned a little
            assert error < 0.1
    outcome = nwc("eval", out, "--text", text, "--max-tokens", "512", "--json")
    assert outcome.json["perplexity"] > 1


@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("gpt2", ("--calibration",)),
        ("gpt2", ("--data-free",)),
        ("untied_llama", ("--calibration", "--method", "ecsq")),
        ("untied_llama", ("--calibration", "--method", "watersic")),
        ("llama", ("--data-free", "--method", "entquant")),
        ("llama", ("--data-free", "--method", "ecsq", "--profile", "latency")),
        ("llama", ("--calibration", "--codec-by-reference", "--profile", "archive")),
        ("bare", ("--data-free",)),
    ],
)
def test_models_and_methods(nwc, request, text, tmp_path, model, how):
    source, out = request.getfixturevalue(model), tmp_path / "out"
    if how[0] == "--calibration":
        how = ("--calibration", text, "--calibration-tokens", "2048", *how[1:])
    outcome = nwc("compress", source, "--output", out, "--bits", "6", "--json", *how)
    assert outcome.code == 0, outcome.err
    assert outcome.json["bits_per_parameter"]["tensors"] == pytest.approx(6, rel=0.02)
    assert nwc("verify", out).code == 0
    names = {key for file in source.glob("*.safetensors") for key in load_file(file)}
    assert set(package.open(out).keys()) == names
    if model != "bare":
        found = nwc(
            "eval", out, "--reference", source, "--text", text, "--max-tokens", "512", "--json"
        )
        assert found.json["kl_divergence"] < 0.2


def test_paper_codec_by_reference(nwc, llama, tmp_path):
    out = tmp_path / "out"
    arguments = ("--preset", "paper", "--codec-by-reference", "--data-free", "--bits", "4")
    assert nwc("compress", llama, "--output", out, *arguments).code == 0
    assert nwc("verify", out).code == 0


def test_a_codec_of_ones_own(nwc, llama, bare, tmp_path):
    codec = tmp_path / "mine.safetensors"
    train = ("train", "--weights", bare, "--keep", "*decoder*", "--hold-out", "*encoder*")
    assert nwc(*train, "--output", codec, "--steps", "4").code == 2  # nothing left to train on
    train = ("train", "--weights", llama, "--output", codec, "--batch-chunks", "64")
    train = (*train, "--hold-out", "*layers.1.*")
    outcome = nwc(*train, "--steps", "20", "--checkpoint-every", "10", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["rate_distortion"]
    first = codec.read_bytes()
    assert len(codec.with_suffix(".jsonl").read_text().splitlines()) == 1
    # Resumed at its end it has nothing left to do and writes the same file.
    assert nwc(*train, "--steps", "20", "--resume").code == 0
    assert codec.read_bytes() == first
    out = tmp_path / "out"
    made = nwc(
        "compress", llama, "--output", out, "--codec", codec, "--codec-by-reference", "--data-free"
    )
    assert made.code == 0, made.err
    shutil.move(codec, tmp_path / "elsewhere.safetensors")
    assert nwc("inspect", out).code == 2
    assert nwc("verify", out, "--codec", tmp_path / "elsewhere.safetensors").code == 0


def test_without_calibration_text_it_is_data_free_and_says_so(nwc, llama, tmp_path):
    outcome = nwc("compress", llama, "--output", tmp_path / "out")
    assert outcome.code == 0
    assert "--calibration TEXT gives better quality" in outcome.err
    assert nwc("compress", llama, "--output", tmp_path / "same", "--data-free").err == ""
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same")]
    assert stored[0] == stored[1]


def test_keep_leaves_tensors_alone(nwc, llama, tmp_path):
    out = tmp_path / "out"
    keep = ("--keep", "*layers.0.*", "--keep", "*down_proj*")
    found = nwc("compress", llama, "--output", out, "--data-free", "--json", *keep).json
    names = [row["name"] for row in found["tensors"]]
    assert len(names) == 2 * 6
    assert not any("layers.0." in name or "down_proj" in name for name in names)


def test_bench_prints_a_table(nwc):
    outcome = nwc("bench", "decode", "--size", "64", "--repeats", "1")
    assert outcome.code == 0
    assert "| preset | bits | decoder | threads |" in outcome.out


def test_bench_generate(nwc, compressed):
    how = ("bench", "generate", "--repeats", "1", "--new-tokens", "2")
    made = nwc(*how, "--model", compressed, "--device", "cpu")
    assert made.code == 0, made.err
    assert "| batch | mode | tokens/s |" in made.out
    assert [len(made.out.split(f"| {batch} | packed |")) for batch in (1, 8, 64)] == [2, 2, 2]
    found = nwc(*how, "--size", "512", "--json").json
    assert {row["mode"] for row in found["rows"]} == {"original", "dense", "packed"}
    made = nwc(*how[:2], "--new-tokens", "0")
    assert (made.code, "--new-tokens is 0" in made.err) == (2, True)


def test_bench_tensor(nwc):
    found = nwc("bench", "tensor", "--size", "128", "--repeats", "1", "--json").json
    assert found["decode"]["ratio_to_safetensors"] > 0
    assert found["machine"]
