import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nwc.compression.source import SourceCheckpoint, find_model
from nwc.errors import ConfigError, FormatError


def test_one_file_and_many(llama, untied_llama):
    for folder in (llama, untied_llama):
        tensors = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
        source = SourceCheckpoint(folder)
        assert source.shapes == {k: tuple(v.shape) for k, v in tensors.items()}
        for key, tensor in source.tensors(list(tensors)):
            assert torch.equal(tensor, tensors[key])
        assert source.config["model_type"] == "llama"


def test_matrices_and_rows_in_either_orientation(bare):
    source = SourceCheckpoint(bare)
    W = load_file(bare / "model.safetensors")["decoder.weight"].float()
    assert torch.equal(source.matrix("decoder.weight", False), W)
    assert torch.equal(source.matrix("decoder.weight", True), W.T)
    pieces = [slice(3, 7), slice(50, 51)]
    expected = torch.cat([W[3:7], W[50:51]])
    assert torch.equal(source.rows("decoder.weight", False, pieces), expected)
    assert torch.equal(
        source.rows("decoder.weight", True, pieces), torch.cat([W.T[3:7], W.T[50:51]])
    )
    assert source.config is None


def test_weights_that_are_no_numbers(tmp_path):
    W = torch.ones(4, 4)
    W[1, 1], W[2, 2] = float("nan"), float("inf")
    save_file({"W": W}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"W has 2 weights .* --keep 'W'"):
        SourceCheckpoint(tmp_path).matrix("W", False)


def test_missing_shard(untied_llama, tmp_path):
    copy = shutil.copytree(untied_llama, tmp_path / "copy")
    gone = sorted(copy.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FormatError, match=f"{gone.name} .* is missing; download"):
        SourceCheckpoint(copy)


def test_an_index_that_does_not_fit(untied_llama, tmp_path):
    copy = shutil.copytree(untied_llama, tmp_path / "copy")
    path = copy / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["phantom"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"lacks 1 tensors .* phantom"):
        SourceCheckpoint(copy)
    path.write_text('{"weights": 1}')
    with pytest.raises(FormatError, match="not a weight index"):
        SourceCheckpoint(copy)


def test_a_tensor_in_two_files(tmp_path):
    for name in ("a", "b"):
        save_file({"W": torch.ones(2, 2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FormatError, match=r"W is in both a\.safetensors and b\.safetensors"):
        SourceCheckpoint(tmp_path)


def test_not_safetensors(tmp_path):
    with pytest.raises(FormatError, match=r"no \.safetensors file"):
        SourceCheckpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match="is a pickle: convert it"):
        SourceCheckpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FormatError, match="not a readable safetensors"):
        SourceCheckpoint(tmp_path)


def test_find_model(tmp_path):
    assert find_model(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="is a file"):
        find_model(str(tmp_path / "file"))
    with pytest.raises(FormatError, match="does not exist; wanted"):
        find_model("no such model")


def test_hub_names_are_downloaded(monkeypatch, tmp_path):
    import huggingface_hub

    def download(name, *, allow_patterns):
        assert name == "org/model-1.5"
        assert "*.safetensors" in allow_patterns
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("org/model-1.5") == tmp_path

    def refuse(name, *, allow_patterns):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FormatError, match=r"org/model .* the hub did not give it: offline"):
        find_model("org/model")


def test_patterns(bare):
    source = SourceCheckpoint(bare)
    assert source.matching("*.weight") == ["decoder.weight", "encoder.weight"]
    with pytest.raises(ConfigError, match="matches none of the 3 tensors"):
        source.matching("*.bios")
