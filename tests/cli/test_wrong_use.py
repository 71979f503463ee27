"""What goes wrong is said in one line that names got, wanted and remedy, and loses nothing."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from nwc.cli import compress
from nwc.formats.checkpoint import Checkpoint


def fails(outcome, *words, code=2):
    """One line of error with these words, and no traceback."""
    assert outcome.code == code, outcome
    lines = outcome.err.strip().splitlines()
    assert len([x for x in lines if not x.startswith("note:")]) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    return True


@pytest.fixture
def attempt(nwc, llama, tmp_path):
    """Compress with these flags into an output that must not exist afterwards."""

    def call(*flags, model=llama):
        out = tmp_path / "out"
        outcome = nwc("compress", model, "--output", out, *flags)
        assert not out.exists()
        assert not list(tmp_path.glob(".*"))
        return outcome

    return call


@pytest.fixture
def broken(llama, tmp_path):
    """A copy of the model to break."""
    return shutil.copytree(llama, tmp_path / "broken")


def test_no_such_model(attempt, tmp_path):
    fails(attempt("--data-free", model=tmp_path / "nothing"), "does not exist", "wanted")
    (tmp_path / "file").write_text("x")
    fails(attempt("--data-free", model=tmp_path / "file"), "is a file", "wanted the folder")
    (tmp_path / "empty").mkdir()
    fails(attempt("--data-free", model=tmp_path / "empty"), "no .safetensors")


def test_missing_shard(attempt, untied_llama, tmp_path):
    broken = shutil.copytree(untied_llama, tmp_path / "broken")
    sorted(broken.glob("*.safetensors"))[1].unlink()
    fails(attempt("--data-free", model=broken), "is missing", "download it again")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("calibrated", [True, False])
def test_weights_that_are_not_numbers(attempt, broken, text, value, calibrated):
    file = broken / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, file, {"format": "pt"})
    flags = ("--calibration", text) if calibrated else ("--data-free",)
    fails(attempt(*flags, model=broken), "model.layers.1.mlp.up_proj.weight", "repair")


@pytest.mark.parametrize("bits", ["0.5", "40", "nan"])
def test_bits_out_of_range(attempt, bits):
    fails(attempt("--data-free", "--bits", bits), f"--bits is {bits}", "wanted 2 to 7")


def test_calibration_excludes_data_free(attempt, text):
    fails(attempt("--data-free", "--calibration", text), "exclude each other")


def test_calibration_text(attempt, tmp_path):
    path = tmp_path / "text.txt"
    fails(attempt("--calibration", path), "not a file")
    path.write_text("")
    fails(attempt("--calibration", path), "holds no text")
    path.write_text("tiny")
    fails(attempt("--calibration", path), "4 tokens", "longer text")


def test_context_beyond_the_model(attempt, text):
    fails(attempt("--calibration", text, "--context", "4096"), "4096", "at most 128")


def test_calibration_needs_a_model(attempt, bare, text):
    fails(attempt("--calibration", text, model=bare), "cannot calibrate", "--data-free")


def test_output_exists(nwc, llama, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    fails(nwc("compress", llama, "--output", out, "--data-free"), "exists", "--overwrite")
    again = nwc("compress", llama, "--output", out, "--data-free", "--overwrite")
    fails(again, "leaves it alone")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_overwrite_replaces_a_checkpoint(nwc, llama, copy):
    before = (copy / "model.safetensors").read_bytes()
    assert nwc("compress", llama, "--output", copy, "--data-free", "--overwrite").code == 0
    assert (copy / "model.safetensors").read_bytes() != before
    assert sorted(p.name for p in copy.parent.iterdir()) == ["copy", "copy-report.html"]


def test_the_model_is_not_overwritten(nwc, broken):
    outcome = nwc("compress", broken, "--output", broken, "--data-free", "--overwrite")
    fails(outcome, "holds the model itself")
    assert (broken / "model.safetensors").exists()


def test_a_codec_that_is_none(attempt, bare, tmp_path):
    path = tmp_path / "codec.safetensors"
    path.write_bytes(b"not a codec")
    fails(attempt("--data-free", "--codec", path), "not a safetensors file")
    fails(attempt("--data-free", "--codec", bare / "model.safetensors"), "not a codec")
    fails(attempt("--data-free", "--codec", tmp_path / "nothing"), "cannot be read")


def test_a_network_too_big_for_the_model(attempt):
    fails(attempt("--data-free", "--preset", "paper"), "--codec-by-reference")


def test_already_compressed(attempt, compressed):
    fails(attempt("--data-free", model=compressed), "already quantised", "original")


def test_skipped_tensors_are_an_error(attempt, broken):
    file = broken / "model.safetensors"
    save_file({**load_file(file), "extra": torch.zeros(4, 4)}, file, {"format": "pt"})
    outcome = attempt("--data-free", model=broken)
    assert outcome.code == 2
    assert "--keep 'extra'" in outcome.err


def test_debug_shows_the_traceback(nwc, tmp_path):
    outcome = nwc("inspect", tmp_path, "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err


def test_odd_matrices(nwc, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "row": torch.randn(1, 500, generator=generator),
        "column": torch.randn(500, 1, generator=generator),
        "odd": torch.randn(131, 77, generator=generator),
        "with_zero_columns": torch.randn(128, 64, generator=generator),
        "zero": torch.zeros(64, 32),
        "tiny": torch.randn(64, 64, generator=generator) * 1e-30,
    }
    tensors["with_zero_columns"][:, ::3] = 0
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    assert nwc("compress", source, "--output", out, "--data-free", "--bits", "7").code == 0
    assert nwc("verify", out).code == 0
    restored = tmp_path / "restored"
    assert nwc("decompress", out, "--output", restored, "--dtype", "float32").code == 0
    found = load_file(restored / "model.safetensors")
    for key, value in tensors.items():
        assert found[key].shape == value.shape
        assert float((found[key] - value).norm()) <= 0.05 * float(value.norm())
    assert not found["with_zero_columns"][:, ::3].any()


def test_truncated_and_flipped_files(nwc, copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    fails(nwc("inspect", copy), "cannot be read", code=1)
    assert nwc("verify", copy).code == 1
    # Flip a bit in the middle of the last stream's payload.
    flipped = bytearray(whole)
    flipped[-2000] ^= 4
    file.write_bytes(flipped)
    outcome = nwc("verify", copy, "--json")
    assert outcome.code == 1
    assert [row for row in outcome.json["tensors"] if not row["ok"]]
    fails(nwc("decompress", copy, "--output", copy.parent / "out"), "checksum", code=1)
    assert not (copy.parent / "out").exists()


def test_damage_of_tensors_stored_as_they_were(nwc, copy):
    shard = Checkpoint(copy).shards[0]
    start, _ = shard.entries["model.embed_tokens.weight"]["data_offsets"]
    data = bytearray(shard.path.read_bytes())
    data[shard.header_size + start + 99] ^= 1
    shard.path.write_bytes(data)
    outcome = nwc("verify", copy)
    assert outcome.code == 1
    assert "checksum of the kept tensors" in outcome.err


def test_newer_version(nwc, copy):
    file = copy / "model.safetensors"
    data = file.read_bytes()
    assert data.count(b'\\"version\\":\\"1.0\\"') == 1
    file.write_bytes(data.replace(b'\\"version\\":\\"1.0\\"', b'\\"version\\":\\"2.0\\"'))
    fails(nwc("inspect", copy), "version 2.0", "update nwc")


def test_not_a_compressed_checkpoint(nwc, llama, tmp_path):
    fails(nwc("inspect", llama), "not a compressed checkpoint", "nwc compress")
    fails(nwc("inspect", tmp_path), "wanted the output of nwc compress")
    assert nwc("verify", llama).code == 1


def test_eval_without_a_tokenizer(nwc, copy, text):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    outcome = nwc("eval", copy, "--text", text)
    assert outcome.code == 2
    assert "no tokenizer that loads" in outcome.err


def test_interruption_inside_leaves_nothing(attempt, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(compress, "compress_model", interrupted)
    outcome = attempt("--data-free")
    assert outcome.code == 130
    assert outcome.err.strip() == "interrupted; no output was written"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_only_what_the_next_run_goes_on_with(nwc, llama, text, tmp_path, number):
    # Long enough that a busy machine still finds it at work.
    options = ["--output", tmp_path / "out", "--calibration", text, "--recovery-steps", "48"]
    command = [sys.executable, "-m", "nwc", "compress", llama, *options]
    # Jobs that a shell puts into the background inherit an ignored Ctrl-C.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    for _ in range(600):  # until something is finished
        if list(tmp_path.glob("out.work/units/*/group-*")) or process.poll() is not None:
            break
        time.sleep(0.05)
    for _ in range(3):  # an impatient user must not interrupt the cleaning up
        process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "the same command goes on from there" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]
    again = nwc("compress", llama, *options)
    assert again.code == 0
    assert "going on with" in again.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out-report.html"]


def test_wrong_training_options(nwc, llama, tmp_path):
    out = tmp_path / "codec.safetensors"
    train = ("train", "--weights", llama, "--hold-out", "*layers.1.*", "--output")
    fails(nwc(*train, tmp_path / "codec.bin"), ".safetensors")
    fails(nwc(*train, out, "--preset", "paper", "--lam", "7"), "--lam is 7", "wanted one of")
    fails(nwc(*train, out, "--resume"), "nothing to resume")
    fails(nwc(*train, out, "--steps", "0"), "steps is 0")


def test_no_such_device(attempt):
    fails(attempt("--data-free", "--device", "abacus"), "abacus", "use cpu")


def test_json_has_no_nan(nwc, bare, tmp_path):
    out = tmp_path / "out"
    found = nwc("compress", bare, "--output", out, "--data-free", "--json")
    json.loads(found.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
