"""from_pretrained, save_pretrained and generate, with whichever transformers is installed."""

import copy
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import nwc
from nwc.integrations.packed import PackedStack, packed_matrices

load = AutoModelForCausalLM.from_pretrained

DTYPES = [torch.float32, torch.bfloat16]


def logits(model):
    ids = (torch.arange(48).reshape(2, 24) * 5) % 256
    with torch.no_grad():
        return model(input_ids=ids).logits


def packed(folder, **options):
    return load(folder, quantization_config=nwc.NWCConfig(mode="packed"), **options)


def eager(folder, **options):
    """As packed experts are run: one by one."""
    return load(folder, experts_implementation="eager", **options)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_is_the_decompressed_model(family, dtype):
    model, expected = load(family.compressed, dtype=dtype), load(family.restored, dtype=dtype)
    state = expected.state_dict()
    assert {k: v.dtype for k, v in model.state_dict().items()} == {
        k: v.dtype for k, v in state.items()
    }
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(logits(model), logits(expected))
    assert packed_matrices(model) == {}
    ids = torch.arange(8)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_computes_the_same(family, dtype):
    model, expected = packed(family.compressed, dtype=dtype), eager(family.restored, dtype=dtype)
    assert torch.equal(logits(model), logits(expected))
    assert {m for p in packed_matrices(model).values() for m in p.keys} == set(
        nwc.open(family.compressed).compressed_keys()
    )
    ids = torch.arange(8)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))


def test_a_dense_model_is_saved_as_an_ordinary_one(family, tmp_path):
    model = load(family.compressed)
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in config_of(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert "nwc" not in file.metadata()
    with pytest.raises(nwc.FormatError, match="not a compressed checkpoint"):
        nwc.open(tmp_path)
    assert names == set(nwc.open(family.compressed).keys())
    assert torch.equal(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_a_packed_model_is_saved_compressed(family, tmp_path, shard):
    model = packed(family.compressed)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "40KB")
    before, after = nwc.open(family.compressed), nwc.open(tmp_path)
    assert after.check_hash() == before.check_hash()
    after.check_kept()
    weights, expected = nwc.load_state_dict(tmp_path), nwc.load_state_dict(family.compressed)
    assert set(weights) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
    stored = config_of(family.compressed)["quantization_config"]
    assert config_of(tmp_path)["quantization_config"] == stored
    assert torch.equal(logits(packed(tmp_path)), logits(model))
    assert torch.equal(logits(load(tmp_path)), logits(load(family.compressed)))


def test_what_was_trained_beside_packed_weights_is_saved(llama_pair, tmp_path):
    model = packed(llama_pair.compressed)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    saved = nwc.open(tmp_path)
    assert saved.check_hash() != nwc.open(llama_pair.compressed).check_hash()
    saved.check_kept()
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_dequantize_gives_an_ordinary_model(family, tmp_path):
    model = packed(family.compressed)
    model.dequantize()
    assert packed_matrices(model) == {}
    assert {type(m) for m in model.modules()} == {
        type(m) for m in load(family.compressed).modules()
    }
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in config_of(tmp_path)
    assert torch.equal(logits(eager(tmp_path)), logits(eager(family.compressed)))


def test_gradients_pass_through_packed_weights(llama_pair):
    model, dense = packed(llama_pair.compressed), load(llama_pair.compressed)
    ids = torch.arange(12)[None]
    grads = []
    for each in (model, dense):
        x = each.get_input_embeddings()(ids).detach().requires_grad_()
        each(inputs_embeds=x).logits.float().square().mean().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0


def test_packed_weights_follow_casts_and_copies(llama_pair):
    model = copy.deepcopy(packed(llama_pair.compressed, dtype=torch.float32))
    assert torch.equal(logits(model), logits(load(llama_pair.restored, dtype=torch.float32)))
    model.to(torch.float64)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float64
    with torch.inference_mode():
        first = model(input_ids=torch.arange(4)[None]).logits.clone()
    with torch.no_grad():  # a buffer that was made under inference mode can still be written
        assert torch.equal(model(input_ids=torch.arange(4)[None]).logits, first)


def test_two_weights_of_one_shape_may_be_held_at_once(llama_pair):
    model, dense = packed(llama_pair.compressed), load(llama_pair.compressed)
    attention, expected = model.model.layers[0].self_attn, dense.model.layers[0].self_attn
    with torch.no_grad():
        both = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(both, torch.cat([expected.k_proj.weight, expected.v_proj.weight]))


def test_packed_layers_are_still_what_they_were(family):
    model = packed(family.compressed)
    kinds = [type(m) for m in model.modules() if type(m).__name__.startswith("Packed")]
    assert kinds
    assert all(kind.__mro__[1].__name__ == kind.__name__.removeprefix("Packed") for kind in kinds)
    if "llama" in family.source.name:
        assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


def test_a_stack_acts_like_its_tensor(make_experts, tmp_path):
    nwc.compress(make_experts("gpt_oss"), tmp_path / "out", bits=6, data_free=True)
    stack = packed(tmp_path / "out").model.layers[0].mlp.experts.gate_up_proj
    whole = load(tmp_path / "out").model.layers[0].mlp.experts.gate_up_proj
    assert isinstance(stack, PackedStack)
    assert (stack.shape, stack.dtype, len(stack)) == (whole.shape, whole.dtype, len(whole))
    assert torch.equal(stack[1], whole[1])
    assert torch.equal(stack[torch.tensor(2)], whole[2])
    assert torch.equal(stack[:2], whole[:2])
    assert torch.equal(stack.transpose(1, 2), whole.transpose(1, 2))
    x = torch.ones(4, 3, whole.shape[1], dtype=whole.dtype)
    assert torch.equal(torch.bmm(x, stack), torch.bmm(x, whole))
    with pytest.raises(IndexError):
        stack[4]
    with torch.inference_mode():
        assert torch.equal(stack.dense(), whole)


@pytest.mark.parametrize("mode", ["dense", "packed"])
def test_compression_while_loading(llama, llama_pair, mode, tmp_path):
    config = nwc.NWCConfig(bits=6, mode=mode)
    model = load(llama, quantization_config=config)
    assert torch.equal(logits(model), logits(load(llama_pair.compressed)))
    assert config.options == {}  # it can be used again
    model.save_pretrained(tmp_path)
    if mode == "packed":
        assert nwc.open(tmp_path).check_hash() == nwc.open(llama_pair.compressed).check_hash()
        stored = config_of(llama_pair.compressed)["quantization_config"]
        assert config_of(tmp_path)["quantization_config"] == stored
    else:
        assert "quantization_config" not in config_of(tmp_path)


def test_options_of_the_compression(llama):
    keep = nwc.NWCConfig(bits=6, mode="packed", keep=["*self_attn*"])
    names = packed_matrices(load(llama, quantization_config=keep))
    assert names
    assert not any("self_attn" in name for name in names)
    with pytest.raises(nwc.ConfigError, match="colour is not an option"):
        load(llama, quantization_config=nwc.NWCConfig(colour="red"))
    with pytest.raises(nwc.ConfigError, match="wanted 2 to 7"):
        load(llama, quantization_config=nwc.NWCConfig(bits=9))
    with pytest.raises(nwc.ConfigError, match="wanted one of dense, packed"):
        nwc.NWCConfig(mode="sparse")


def test_device_map(llama_pair):
    pytest.importorskip("accelerate")
    for mode in ("dense", "packed"):
        config = nwc.NWCConfig(mode=mode)
        model = load(llama_pair.compressed, device_map="cpu", quantization_config=config)
        assert torch.equal(logits(model), logits(load(llama_pair.restored, dtype=model.dtype)))
        with pytest.raises(nwc.ConfigError, match="leave disk out"):
            load(llama_pair.compressed, device_map={"": "disk"}, quantization_config=config)


def test_a_model_without_its_head(llama_pair):
    model, expected = AutoModel.from_pretrained(llama_pair.compressed), load(llama_pair.compressed)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, expected.model(ids).last_hidden_state)


def test_tokenizers_and_ordinary_models_load_as_ever(llama, llama_pair):
    text = "the cat"
    tokenizer = AutoTokenizer.from_pretrained(llama_pair.compressed)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert load(llama).dtype == torch.bfloat16


def test_damage_is_named(llama_pair, tmp_path):
    copied = shutil.copytree(llama_pair.compressed, tmp_path / "copy")
    shard = nwc.open(copied).shards[0]
    key = next(k for k in shard.entries if k.endswith("up_proj.weight.nwc"))
    start, end = shard.entries[key]["data_offsets"]
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[shard.header_size + (start + end) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(nwc.BitstreamError, match=key.removesuffix(".nwc")):
        load(copied)
    with pytest.raises(nwc.BitstreamError, match=key.removesuffix(".nwc")):
        logits(packed(copied))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(nwc.NWCError):
        load(copied)


def test_the_dtype_is_the_originals_where_config_names_none(llama, tmp_path):
    copied = shutil.copytree(llama, tmp_path / "model")
    config = config_of(copied)
    config.pop("dtype", None)
    config.pop("torch_dtype", None)
    (copied / "config.json").write_text(json.dumps(config))
    nwc.compress(copied, tmp_path / "out", bits=6, data_free=True)
    assert load(tmp_path / "out").dtype == load(copied).dtype == torch.bfloat16
