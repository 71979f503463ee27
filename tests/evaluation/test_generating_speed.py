import json
import shutil
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

import nwc
import nwc.kernels.backend
from nwc.evaluation.generating_speed import bench_generate
from nwc.integrations.packed import PackedMatrix
from nwc.kernels import rans_numba

compress = partial(nwc.compress, bits=6, data_free=True)


def bench(model, **options):
    return bench_generate(
        compress, model, **{"new_tokens": 3, "batches": (1, 2), "repeats": 1} | options
    )


def modes(found):
    return [(row["batch"], row["mode"]) for row in found["rows"]]


@pytest.fixture
def compressed(llama, tmp_path):
    compress(llama, tmp_path / "compressed")
    return tmp_path / "compressed"


def test_an_ordinary_model_is_compared_with_itself_compressed(llama):
    found = bench(llama)
    assert modes(found) == [(b, m) for b in (1, 2) for m in ("original", "dense", "packed")]
    for row in found["rows"]:
        assert row["tokens/s"] == pytest.approx(1e3 * row["batch"] / row["ms/token"])
        assert row["times dense's time"] > 0
    sizes = found["weights_megabytes"]
    assert sizes["packed"] < sizes["dense"] == sizes["original"]
    assert found["parameters"] == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(llama).parameters()
    )
    assert found["packed_buffers_megabytes"] > 0
    assert found["machine"]


def test_a_compressed_model_has_no_original(compressed):
    found = bench(compressed, batches=(1,))
    assert modes(found) == [(1, "dense"), (1, "packed")]


def test_without_a_model_there_is_a_random_one():
    found = bench_generate(compress, width=64, new_tokens=2, batches=(3,), repeats=1)
    assert modes(found) == [(3, "original"), (3, "dense"), (3, "packed")]
    assert found["model"] == "random Llama"


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts(make_experts, family):
    assert len(bench(make_experts(family), batches=(2,))["rows"]) == 3


def test_nothing_is_timed_while_packed_weights_differ(compressed, monkeypatch):
    decode = PackedMatrix.decode_into

    def wrong(matrix, out):
        decode(matrix, out)
        out[0, 0] += 1

    monkeypatch.setattr(PackedMatrix, "decode_into", wrong)
    with pytest.raises(AssertionError, match="logits of packed differ"):
        bench(compressed)


def test_nothing_is_timed_while_kernels_differ(compressed, monkeypatch):
    decode = rans_numba.decode_tile
    monkeypatch.setattr(rans_numba, "decode_tile", lambda *given: decode(*given) + 1)
    monkeypatch.delenv("NWC_BACKEND", raising=False)
    if nwc.kernels.backend.backend() == "numba":
        pytest.skip("there is no other kernel to compare with")
    with pytest.raises(AssertionError, match="logits of dense differ"):
        bench(compressed)


def test_a_text_that_would_end_goes_on(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"] = list(range(1, 256))
    (folder / "generation_config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.ones(1, 1, dtype=torch.long)
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    assert model.generate(ids, max_new_tokens=5, **given).shape[1] < 6
    assert len(bench(folder, new_tokens=5)["rows"]) == 6


def test_a_model_that_takes_fewer_tokens(compressed):
    with pytest.raises(nwc.ConfigError, match="--new-tokens is 128, the model takes 128"):
        bench(compressed, new_tokens=128)
