"""Rivals without a file format: `nwc compress --method NAME` makes dense weights and a budget."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nwc.methods.dense import DenseMethod, Prepared
from nwc.methods.qat import Schedule
from nwc.methods.rtn import RTN

QUICK = ["--calibration-tokens", "2048", "--context", "64"]


def test_an_ordinary_checkpoint_with_its_bits_beside(nwc, llama, text, tmp_path):
    out = tmp_path / "out"
    made = nwc(
        "compress", llama, "--output", out, "--method", "gptq", "--bits", 4,
        "--calibration", text, *QUICK, "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "4 bits in groups of 128" in made.err
    model = AutoModelForCausalLM.from_pretrained(out)
    original = AutoModelForCausalLM.from_pretrained(llama)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = model.get_parameter(name) - original.get_parameter(name)
    assert 0 < moved.norm() < 0.5 * original.get_parameter(name).norm()
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)

    shown = nwc("inspect", out, "--json").json
    assert shown["dense"]
    assert shown["setting"] == "4 bits in groups of 128"
    rows = {row["name"]: row for row in shown["tensors"]}
    n = rows[name]["shape"][1]
    assert rows[name]["bits_per_parameter"] == pytest.approx(4 + 20 * -(-n // 128) / n, rel=1e-5)
    assert rows[name]["hessian_error"] > 0
    assert "no file format" in nwc("inspect", out).out
    evaluated = nwc(
        "eval", out, "--reference", llama, "--text", text, "--max-tokens", 500, "--json"
    )
    assert evaluated.json["kl_divergence"] > 0
    assert nwc("report", out, "--overwrite").code == 0
    refused = nwc("verify", out)
    assert refused.code
    assert "not a compressed checkpoint" in refused.err


def test_experts_are_put_together_again(nwc, experts, tmp_path):
    out = tmp_path / "out"
    made = nwc("compress", experts, "--output", out, "--method", "rtn", "--data-free", "--bits", 8)
    assert made.code == 0, made.err
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (experts, out))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].shape == tensor.shape
        assert (after[key].float() - tensor.float()).norm() <= 0.02 * tensor.float().norm()


def test_recovery_if_asked_for(nwc, llama, text, tmp_path):
    options = ["--calibration", text, *QUICK, "--method", "rtn", "--bits", 2]
    for name, more in (("plain", []), ("tuned", ["--recovery", "--recovery-steps", 8])):
        assert nwc("compress", llama, "--output", tmp_path / name, *options, *more).code == 0
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("plain", "tuned")]
    assert [r["recovery"] for r in reports] == [False, True]
    assert reports[0]["blocks"] == []
    assert reports[1]["blocks"][0]["groups"][0]["steps"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--file-bits", 5], "use --bits"),
        (["--codec-by-reference"], "has no codec"),
        (["--recovery"], "wants --calibration"),
    ],
)
def test_options_that_do_not_fit(nwc, llama, tmp_path, options, message):
    made = nwc("compress", llama, "--output", tmp_path / "out", "--method", "rtn", *options)
    assert made.code
    assert message in made.err
    assert not (tmp_path / "out").exists()


class Halving(RTN):
    """Halves every norm first, and says so."""

    calls = 0

    def prepare(self, model, windows, on_progress=None):
        type(self).calls += 1
        norms = {n: p.detach() / 2 for n, p in model.named_parameters() if p.dim() == 1}
        return Prepared(norms, {"initializer_range": 0.5})


def test_a_method_may_change_the_model_first(nwc, llama, tmp_path, monkeypatch):
    monkeypatch.setitem(nwc_methods(), "rtn", Halving)
    out = tmp_path / "out"
    made = nwc("compress", llama, "--output", out, "--method", "rtn", "--bits", 4, "--data-free")
    assert made.code == 0, made.err
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (llama, out))
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"] / 2)
    assert json.loads((out / "config.json").read_text())["initializer_range"] == 0.5
    assert Halving.calls == 1
    assert json.loads((out / "report.json").read_text())["model"]["name"] == llama.name


class HalvingMatrices(RTN):
    """Halves what it is told will be quantised."""

    def prepare(self, model, windows, on_progress=None):
        changed = {x.parameter: model.get_parameter(x.parameter).data for x in self.matrices}
        for matrix in self.matrices:
            view = matrix.view(changed[matrix.parameter])
            assert view.shape[1] in (48, 64)
            view.mul_(0.5)
        return Prepared(changed, {})


def test_a_method_knows_the_matrices_of_the_model(nwc, experts, tmp_path, monkeypatch):
    monkeypatch.setitem(nwc_methods(), "rtn", HalvingMatrices)
    out = tmp_path / "out"
    made = nwc("compress", experts, "--output", out, "--method", "rtn", "--bits", 8, "--data-free")
    assert made.code == 0, made.err
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (experts, out))
    planned = {row["name"] for row in nwc("inspect", out, "--json").json["tensors"]}
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        chosen = any(name in (key, f"{key}.0") for name in planned)
        wanted = tensor.float() * (0.5 if chosen else 1.0)
        assert (after[key].float() - wanted).norm() <= 0.02 * wanted.norm(), key


@pytest.mark.parametrize("method", ["llm_qat", "bitdistiller"])
def test_training_keeps_to_the_plan(nwc, llama, text, tmp_path, monkeypatch, method):
    monkeypatch.setattr(nwc_methods()[method], "schedule", Schedule(steps=4, batch_tokens=128))
    out, kept = tmp_path / "out", "model.layers.1.mlp.up_proj.weight"
    made = nwc(
        "compress", llama, "--output", out, "--method", method, "--bits", 3, "--keep", kept,
        "--calibration", text, *QUICK,
    )  # fmt: skip
    assert made.code == 0, made.err
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (llama, out))
    planned = {row["name"] for row in nwc("inspect", out, "--json").json["tensors"]}
    assert before.keys() == after.keys()
    assert kept not in planned
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]) == (key not in planned), key
        if key in planned:
            rows = (row for part in after[key].split(128, 1) for row in part)
            assert max(len(row.unique()) for row in rows) <= 8


def test_shares_reach_the_workers(nwc, llama, text, tmp_path):
    options = ["--method", "svd_llm_v2", "--bits", 6, "--calibration", text, *QUICK]
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        more = ["--workers", workers, "--threads", 1]
        made = nwc("compress", llama, "--output", out, *options, *more)
        assert made.code == 0, made.err
        found.append(nwc("inspect", out, "--json").json["tensors"])
    assert found[0] == found[1]
    sizes = {row["bytes"] for row in found[0] if "up_proj" in row["name"]}
    assert len(sizes) > 1


def test_text_that_cannot_be_done_without(nwc, llama, tmp_path):
    made = nwc("compress", llama, "--output", tmp_path / "out", "--method", "bitdistiller",
               "--bits", 3, "--data-free")  # fmt: skip
    assert made.code
    assert "bitdistiller" in made.err
    assert "--calibration" in made.err


def test_embeddings_and_head_may_come_apart(nwc, llama, text, tmp_path):
    tied, out = shutil.copytree(llama, tmp_path / "tied"), tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    assert model.config.tie_word_embeddings
    with torch.no_grad():
        model.model.norm.weight += torch.linspace(-0.5, 0.5, 64)
    model.save_pretrained(tied)
    made = nwc(
        "compress", tied, "--output", out, "--method", "spinquant", "--bits", 8,
        "--calibration", text, *QUICK,
    )  # fmt: skip
    assert made.code == 0, made.err
    found = load_file(next(out.glob("*.safetensors")))
    head, embedding = found["lm_head.weight"], found["model.embed_tokens.weight"]
    assert not torch.equal(head, embedding)
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert (found["model.norm.weight"] == 1).all()
    assert not json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    evaluated = nwc(
        "eval", out, "--reference", tied, "--text", text, "--max-tokens", 500, "--json"
    )
    assert evaluated.json["kl_divergence"] < 0.01


def nwc_methods() -> dict[str, type[DenseMethod]]:
    from nwc.methods.registry import DENSE

    return DENSE
