"""`nwc run`."""

import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "the cat sat"


@pytest.mark.parametrize("mode", ["dense", "packed"])
def test_what_is_generated_is_what_the_model_says(nwc, compressed, mode):
    made = nwc("run", compressed, "--prompt", PROMPT, "--max-new-tokens", "12", "--mode", mode)
    assert made.code == 0, made.err
    model = AutoModelForCausalLM.from_pretrained(compressed)
    tokenizer = AutoTokenizer.from_pretrained(compressed)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    assert made.out == tokenizer.decode(out[0, ids.shape[1] :]) + "\n"
    count = out.shape[1] - ids.shape[1]
    assert re.search(rf"{count} tokens: the first after [\d.]+ s, then [\d.]+ tokens/s", made.err)
    assert ("packed)" in made.err) == (mode == "packed")


def test_packed_weights_take_what_their_streams_take(nwc, compressed, llama):
    sizes = {}
    for name, folder, mode in (
        ("original", llama, "dense"),
        ("dense", compressed, "dense"),
        ("packed", compressed, "packed"),
    ):
        made = nwc("run", folder, "--prompt", PROMPT, "--max-new-tokens", "1", "--mode", mode)
        sizes[name] = float(re.search(r"weights ([\d.]+) MB", made.err)[1])
    assert sizes["original"] == sizes["dense"] > sizes["packed"]
    stored = (compressed / "model.safetensors").stat().st_size / 1e6
    assert sizes["packed"] <= 1.05 * stored + 0.1  # rounded


def test_draws_follow_the_seed(nwc, compressed):
    def draw(seed):
        how = ("--max-new-tokens", "24", "--temperature", "1.5", "--top-p", "0.95")
        return nwc("run", compressed, "--prompt", PROMPT, *how, "--seed", str(seed)).out

    assert draw(1) == draw(1) != draw(2)


def test_the_models_own_limit_ends_the_text(nwc, compressed):
    made = nwc("run", compressed, "--prompt", "a" * 120, "--max-new-tokens", "50")
    assert made.code == 0
    assert re.search(r"^\d tokens", made.err, re.MULTILINE)  # 128 in all
    made = nwc("run", compressed, "--prompt", "a" * 128)
    assert made.code == 2
    assert "128 tokens, the model takes 128" in made.err


def test_wrong_use(nwc, compressed, llama, copy):
    for options, message in (
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--temperature", "-1"), "--temperature -1"),
        (("--top-p", "0"), "--top-p 0"),
    ):
        made = nwc("run", compressed, "--prompt", PROMPT, *options)
        assert (made.code, message in made.err) == (2, True), made.err
    assert "begin the text" in nwc("run", compressed, "--prompt", "").err
    made = nwc("run", llama, "--prompt", PROMPT, "--mode", "packed")
    assert made.code == 2
    assert "nothing to keep packed" in made.err


def test_a_model_without_a_tokenizer(nwc, copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    made = nwc("run", copy, "--prompt", PROMPT)
    assert made.code == 2
    assert "no tokenizer that loads" in made.err


def test_a_damaged_model(nwc, copy):
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    assert nwc("run", copy, "--prompt", PROMPT).code == 1


def test_a_folder_without_a_model(nwc, bare, compressed, tmp_path):
    folder = shutil.copytree(bare, tmp_path / "bare")
    for file in compressed.glob("tokenizer*"):
        shutil.copy(file, folder)
    assert nwc("run", folder, "--prompt", PROMPT).code == 2
