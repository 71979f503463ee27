import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import nwc
from nwc.cli.main import main


@pytest.fixture(scope="module", params=["llama", "untied_llama", "gpt2"])
def pair(request, tmp_path_factory):
    """An original and its compressed folder."""
    source = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp("compressed") / request.param
    with pytest.raises(SystemExit):
        main(["compress", str(source), "--output", str(out), "--bits", "7", "--data-free"])
    return source, out


def test_the_model_is_the_original_with_the_decoded_weights(pair):
    source, out = pair
    weights = nwc.load_state_dict(out, torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    missing, unexpected = expected.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}  # tied
    model = nwc.load_model(out, torch.float32)
    tokens = torch.randint(256, (2, 20))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
    assert not model.training


def test_ties_are_kept(pair):
    source, out = pair
    original = AutoModelForCausalLM.from_pretrained(source)
    model = nwc.load_model(out)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == original.config.tie_word_embeddings
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_dtypes(pair):
    weights = nwc.load_state_dict(pair[1], torch.float16)
    assert {w.dtype for w in weights.values()} == {torch.float16}


def test_a_folder_without_a_model(bare, tmp_path):
    with pytest.raises(SystemExit):
        main(["compress", str(bare), "--output", str(tmp_path / "out"), "--data-free"])
    assert set(nwc.load_state_dict(tmp_path / "out")) == {
        "encoder.weight",
        "decoder.weight",
        "decoder.bias",
    }
    with pytest.raises(nwc.FormatError, match=r"no config\.json, so no model"):
        nwc.load_model(tmp_path / "out")


def test_a_checkpoint_that_does_not_fill_its_model(pair, tmp_path, change_config):
    import shutil

    copy = shutil.copytree(pair[1], tmp_path / "copy")
    layers = "n_layer" if pair[1].name == "gpt2" else "num_hidden_layers"
    change_config(copy, **{layers: 9})
    with pytest.raises(nwc.FormatError, match="the checkpoint lacks"):
        nwc.load_model(copy)
    change_config(copy, model_type="bert")
    with pytest.raises(nwc.FormatError, match=r"not a causal language model|lacks"):
        nwc.load_model(copy)


def test_reading_loads_neither_transformers_nor_the_compressor(pair):
    script = (
        "import sys, nwc; c = nwc.open(sys.argv[1]); c.tensor(c.compressed_keys()[0]);"
        "names = ('transformers', 'nwc.compression', 'nwc.methods', 'nwc.training', 'nwc.cli');"
        "print([n for n in sys.modules if n.startswith(names)])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, pair[1]], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
