import json

import pytest
import torch
from safetensors.torch import load_file

from nwc.coding.rate import BitBudget
from nwc.errors import BitstreamError, FormatError
from nwc.formats.checkpoint import Checkpoint, is_compressed
from nwc.formats.layout import check_version

UP = "model.layers.1.mlp.up_proj.weight"


def original(untied_llama):
    return {k: v for f in untied_llama.glob("*.safetensors") for k, v in load_file(f).items()}


def test_names_and_kept_tensors_are_the_originals(made, untied_llama):
    checkpoint, tensors = Checkpoint(made), original(untied_llama)
    assert set(checkpoint.keys()) == set(tensors)
    assert sorted(checkpoint.compressed_keys() + checkpoint.kept_keys()) == sorted(tensors)
    assert "lm_head.weight" in checkpoint.kept_keys()
    for key in checkpoint.kept_keys():
        assert checkpoint.tensor(key).dtype == torch.bfloat16
        assert torch.equal(checkpoint.tensor(key), tensors[key])


def test_compressed_tensors_are_near_the_originals(made, untied_llama):
    checkpoint, tensors = Checkpoint(made), original(untied_llama)
    assert len(checkpoint.compressed_keys()) == 14
    for key in checkpoint.compressed_keys():
        W, stored = tensors[key].float(), checkpoint.compressed(key)
        found = checkpoint.tensor(key)
        assert found.dtype == torch.float32
        assert stored.shape == tuple(W.shape)
        relative = float((found - W).norm() / W.norm())
        assert relative == pytest.approx(stored.errors.relative, rel=1e-4)
        assert relative < 0.05


def test_dtype_and_device(made):
    checkpoint = Checkpoint(made)
    assert checkpoint.tensor(UP, torch.float16, "cpu").dtype == torch.float16
    assert checkpoint.tensor("lm_head.weight", torch.float32).dtype == torch.float32
    state = checkpoint.state_dict(torch.bfloat16)
    assert {v.dtype for v in state.values()} == {torch.bfloat16}
    assert torch.equal(state[UP], checkpoint.tensor(UP).bfloat16())


def test_a_tile_alone(made):
    checkpoint = Checkpoint(made)
    tile = checkpoint.compressed(UP).stream.tiles[0]
    columns = slice(tile.column, tile.column + tile.columns)
    assert torch.equal(checkpoint.tile(UP, 0), checkpoint.tensor(UP)[:, columns].T)
    with pytest.raises(BitstreamError, match=f"{UP}: tile 99 does not exist"):
        checkpoint.tile(UP, 99)


def test_every_byte_of_the_shards_has_a_purpose(made):
    checkpoint = Checkpoint(made)
    total = sum((checkpoint.tensor_bytes(k) for k in checkpoint.compressed_keys()), BitBudget())
    total += checkpoint.shared_bytes()
    kept = 0
    for key in checkpoint.kept_keys():
        shard = next(s for s in checkpoint.shards if key in s.entries)
        kept += shard.data_size(key) + shard.entry_size(key)
    files = sum(p.stat().st_size for p in made.glob("*.safetensors"))
    assert total.total + kept == files
    assert checkpoint.file_bytes() == sum(p.stat().st_size for p in made.iterdir())
    assert total.codec > 0
    assert total.payload > 0


def test_unknown_names(made):
    checkpoint = Checkpoint(made)
    assert UP in checkpoint
    assert "nwc.tables" not in checkpoint
    with pytest.raises(FormatError, match=r"has no tensor nope; its names are like"):
        checkpoint.tensor("nope")
    with pytest.raises(FormatError, match="kept as it was"):
        checkpoint.compressed("lm_head.weight")
    with pytest.raises(FormatError, match="not in the checkpoint"):
        checkpoint.compressed("nope")
    with pytest.raises(FormatError, match="is not a kept tensor"):
        checkpoint.kept(UP)


def test_config_is_the_models_own(made, untied_llama):
    config = Checkpoint(made).config()
    assert config == json.loads((untied_llama / "config.json").read_text())
    stored = json.loads((made / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "nwc"


def test_is_compressed(made, untied_llama, tmp_path):
    assert is_compressed(made)
    assert not is_compressed(untied_llama)
    assert not is_compressed(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match="is not JSON"):
        is_compressed(tmp_path)


def test_folders_that_are_no_checkpoint(untied_llama, tmp_path):
    with pytest.raises(FormatError, match="is not a folder"):
        Checkpoint(tmp_path / "none")
    with pytest.raises(FormatError, match="wanted the output of nwc compress"):
        Checkpoint(tmp_path)
    with pytest.raises(FormatError, match="not a compressed checkpoint"):
        Checkpoint(untied_llama)


def test_a_flipped_bit_in_any_stream_is_found(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    shard = Checkpoint(copy).shards[0]
    for key in (UP, "model.layers.0.self_attn.q_proj.weight"):
        start, end = shard.entries[key + ".nwc"]["data_offsets"]
        for part in (0.01, 0.3, 0.9):
            damaged = bytearray(whole)
            damaged[shard.header_size + int(start + part * (end - start))] ^= 16
            file.write_bytes(damaged)
            with pytest.raises(BitstreamError, match=key):
                Checkpoint(copy).tensor(key)


def test_truncated_and_missing_shards(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BitstreamError, match="cannot be read"):
        Checkpoint(copy)
    file.unlink()
    with pytest.raises(FormatError, match="wanted the output"):
        Checkpoint(copy)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="is missing"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    ("version", "message"),
    [("2.0", "this nwc reads 1.x: update nwc"), ("one", "wanted one like 1.0"), (None, "wanted")],
)
def test_versions(version, message):
    with pytest.raises(FormatError, match=message):
        check_version(version, "here")
    check_version("1.9", "here")
