"""What a compressed folder does where nobody imported nwc, and in which order one may import."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

ORDERS = {
    "nwc first": "import nwc; from transformers import AutoModelForCausalLM",
    "transformers first": "import transformers; import nwc; "
    "from transformers import AutoModelForCausalLM",
    "models first": "from transformers import AutoModelForCausalLM, LlamaForCausalLM; import nwc",
    "quantizers first": "import transformers.quantizers.auto, nwc, importlib; "
    "importlib.reload(nwc); from transformers import AutoModelForCausalLM",
}


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )


def test_without_nwc_nothing_runs_with_random_weights(family):
    script = (
        "import sys; from transformers import AutoModelForCausalLM;"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1]); print('loaded')"
    )
    found = run(script, family.compressed)
    assert found.returncode != 0
    assert "loaded" not in found.stdout
    assert "Unknown quantization type, got nwc" in found.stdout + found.stderr
    assert "ignore_mismatched_sizes" in found.stderr


@pytest.mark.parametrize("order", list(ORDERS))
def test_either_may_be_imported_first(llama_pair, order):
    script = (
        f"import sys; {ORDERS[order]};"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "print(type(model).__name__)"
    )
    found = run(script, llama_pair.compressed)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().endswith("LlamaForCausalLM")


def test_importing_nwc_does_not_import_transformers():
    found = run("import sys, nwc; print('transformers' in sys.modules)")
    assert found.stdout.strip() == "False"


def test_a_plain_reader_meets_a_wrong_shape(llama_pair, llama):
    original = load_file(llama / "model.safetensors")
    stored = load_file(llama_pair.compressed / "model.safetensors")
    wrong = [
        key for key in set(stored) & set(original) if stored[key].shape != original[key].shape
    ]
    assert len(wrong) == 1
    assert (stored[wrong[0]].dtype, stored[wrong[0]].numel()) == (torch.uint8, 0)
