"""Mixtures of experts through the command: compress, load, decompress, the same logits."""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import nwc as library


def test_compress_load_decompress(nwc, experts, text, tmp_path):
    out, restored = tmp_path / "out", tmp_path / "restored"
    options = ["--calibration-tokens", "4096", "--recovery-steps", "4", "--bits", "6"]
    made = nwc("compress", experts, "--output", out, "--calibration", text, *options)
    assert made.code == 0, made.err
    family = experts.name
    assert ("without fine-tuning" in made.err) == (family == "gpt_oss")
    assert nwc("verify", out).code == 0
    report = json.loads((out / "report.json").read_text())
    covered = {t["name"] for t in report["tensors"]} | {t["name"] for t in report["kept"]}
    original = load_file(experts / "model.safetensors")
    stacked = {f"{k}.{e}" for k, v in original.items() if v.dim() == 3 for e in range(len(v))}
    assert covered == {k for k, v in original.items() if v.dim() != 3} | stacked
    assert all(t["tokens"] is not None for t in report["tensors"])

    loaded = library.load_model(out, dtype=torch.float32)
    decompressed = nwc("decompress", out, "--output", restored, "--dtype", "float32")
    assert decompressed.code == 0
    found = load_file(restored / "model.safetensors")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in original.items()}
    for key, value in found.items():
        error = (value - original[key].float()).norm() / original[key].float().norm()
        # What the text hardly needs, and a briefly trained model hardly uses, gets fewer bits.
        assert error < 0.5, key
    dense = AutoModelForCausalLM.from_pretrained(restored, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(experts, dtype=torch.float32)
    ids = (torch.arange(32) * 2)[None]
    with torch.no_grad():
        logits = [m(input_ids=ids).logits for m in (loaded, dense, reference)]
    scale = logits[1].abs().max()
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * scale
    assert (logits[1] - logits[2]).abs().max() < 0.5 * logits[2].abs().max()
    agree = (logits[1].argmax(-1) == logits[2].argmax(-1)).float().mean()
    assert agree > 0.9


def test_data_free(nwc, experts, tmp_path):
    out = tmp_path / "out"
    made = nwc("compress", experts, "--output", out, "--data-free", "--json", "--bits", "6")
    assert made.code == 0, made.err
    assert abs(made.json["bits_per_parameter"]["tensors"] / 6 - 1) < 0.005


def test_a_starved_expert_is_reported(nwc, experts, text, tmp_path):
    out = tmp_path / "out"
    how = ("--calibration", text, "--calibration-tokens", "64", "--context", "32")
    made = nwc("compress", experts, "--output", out, "--no-recovery", *how)
    assert made.code == 0
    assert "the mean of all experts' Hessians" in made.err
    assert json.loads((out / "report.json").read_text())["warnings"]
