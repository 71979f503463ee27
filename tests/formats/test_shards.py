import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from nwc.errors import FormatError
from nwc.formats.shards import Shard, ShardWriter

TENSORS = {
    "half": torch.randn(3, 4).half(),
    "brain": torch.randn(2, 2).bfloat16(),
    "double": torch.randn(5).double(),
    "whole": torch.arange(6).view(2, 3),
    "truth": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 7),
    'odd "name" \u00e9': torch.ones(1, dtype=torch.uint8),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    writer = ShardWriter(path)
    for key, tensor in TENSORS.items():
        writer.add(key, tensor)
    writer.add("bytes", b"abc")
    writer.close({"note": "x"})
    return path


def test_the_librarys_own_reader_agrees(path):
    found = load_file(path)
    assert set(found) == {*TENSORS, "bytes"}
    for key, tensor in TENSORS.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)
    assert bytes(found["bytes"].tolist()) == b"abc"


def test_only_the_file_is_left(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_reader(path):
    shard = Shard(path)
    assert shard.metadata == {"format": "pt", "note": "x"}
    assert torch.equal(shard.tensor("brain"), TENSORS["brain"])
    assert bytes(shard.data("bytes")) == b"abc"
    with pytest.raises(FormatError, match="wanted bytes"):
        shard.data("half")


def test_every_byte_is_accounted_for(path):
    shard = Shard(path)
    data = sum(shard.data_size(key) for key in shard.entries)
    assert shard.header_size + data == path.stat().st_size
    entries = sum(shard.entry_size(key) for key in shard.entries)
    frame = '{"__metadata__":{"format":"pt","note":"x"}}'
    padding = len(shard.header_text) - len(shard.header_text.rstrip())
    assert 8 + len(frame) + entries + padding == shard.header_size


@pytest.mark.parametrize(
    "data",
    [b"", b"abc", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]", b"\0" * 16],
)
def test_files_that_are_not_safetensors(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        Shard(path)


def test_truncated(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="cannot be read"):
        Shard(path)


def test_missing(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        Shard(tmp_path / "none.safetensors")


def test_dtypes_that_safetensors_lacks(tmp_path):
    writer = ShardWriter(tmp_path / "a.safetensors")
    with pytest.raises(FormatError, match=r"complex64.*cannot hold"):
        writer.add("z", torch.zeros(2, dtype=torch.complex64))
    writer.abandon()
    assert not (tmp_path / "a.safetensors").exists()


def test_reads_what_others_wrote(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    shard = Shard(tmp_path / "a.safetensors")
    assert shard.metadata == {}
    assert shard.tensor("a").tolist() == [1, 1, 1]
