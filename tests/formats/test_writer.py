import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from nwc.errors import FormatError
from nwc.formats import shards
from nwc.formats.writer import FolderWriter


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in (
        "tokenizer.json",
        "LICENSE",
        "config.json",
        ".hidden",
        "model.safetensors",
        "a.bin",
    ):
        (folder / name).write_text(name)
    (folder / "subfolder").mkdir()
    return folder


def write(output, source, count=3, **options):
    with FolderWriter(output, source, **options) as writer:
        for i in range(count):
            writer.add(f"t{i}", torch.full((100,), float(i)))
        writer.finish({"model_type": "x"}, {"nwc": "{}"})
        writer.publish()


def test_the_folder_holds_weights_config_and_small_files(source, tmp_path):
    write(tmp_path / "out", source)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"tokenizer.json", "LICENSE", "config.json", "model.safetensors"}
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "x"}
    assert set(load_file(tmp_path / "out/model.safetensors")) == {"t0", "t1", "t2"}
    assert os.stat(tmp_path / "out").st_mode & 0o777 == 0o755


def test_shards_and_their_index(source, tmp_path):
    write(tmp_path / "out", source, count=5, shard_bytes=900)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 400
    assert sorted(set(index["weight_map"].values())) == [
        f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    for key, name in index["weight_map"].items():
        assert load_file(tmp_path / "out" / name)[key][0] == float(key[1:])


def test_a_tensor_larger_than_a_shard_has_its_own(source, tmp_path):
    write(tmp_path / "out", source, count=2, shard_bytes=100)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def fail(output, source, error, **options):
    with FolderWriter(output, source, **options) as writer:
        writer.add("t", torch.ones(3))
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_nothing(source, tmp_path, error):
    with pytest.raises(error):
        fail(tmp_path / "out", source, error)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_old_output_survives_a_failure_and_goes_with_success(source, tmp_path):
    out = tmp_path / "out"
    write(out, source, count=1)
    with pytest.raises(RuntimeError):
        fail(out, source, RuntimeError, overwrite=True)
    assert set(load_file(out / "model.safetensors")) == {"t0"}
    write(out, source, count=2, overwrite=True)
    assert set(load_file(out / "model.safetensors")) == {"t0", "t1"}
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}


def test_outputs_that_are_not_touched(source, tmp_path):
    out = tmp_path / "out"
    write(out, source)
    with pytest.raises(FormatError, match="exists; choose another"):
        FolderWriter(out, source)
    (out / "notes").mkdir()
    with pytest.raises(FormatError, match="leaves it alone"):
        FolderWriter(out, source, overwrite=True)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(FormatError, match="leaves it alone"):
        FolderWriter(file, source, overwrite=True)
    for folder in (source, tmp_path):
        with pytest.raises(FormatError, match="holds the model itself"):
            FolderWriter(folder, source, overwrite=True)
    assert file.read_text() == "x"


def test_an_empty_folder_may_be_filled(source, tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", source, overwrite=True)
    assert (tmp_path / "out/model.safetensors").exists()


def test_disk_full(source, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.shutil, "copyfileobj", full)
    with pytest.raises(FormatError, match=r"no space left.*nothing was written.*another disk"):
        write(tmp_path / "out", source)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_place_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="cannot write beside"):
        FolderWriter(tmp_path / "file" / "out", source)


def test_a_place_for_the_scratch_folder_is_used_and_emptied(source, tmp_path):
    scratch = tmp_path / "work" / "output"
    scratch.mkdir(parents=True)
    (scratch / "left by a killed run").write_text("x")
    write(tmp_path / "out", source, scratch=scratch)
    assert not scratch.exists()
    assert "left by a killed run" not in {p.name for p in (tmp_path / "out").iterdir()}


def test_further_files_do_not_hide_the_sources_own(source, tmp_path):
    (source / "README.md").write_text("theirs")
    with FolderWriter(tmp_path / "out", source) as writer:
        writer.add("t", torch.zeros(3))
        writer.finish(None, {})
        assert not (tmp_path / "out").exists()
        writer.publish({"README.md": "ours", "report.json": "{}"})
    found = {
        p.name: p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors"
    }
    assert found["README.md"] == "ours"
    assert found["original-README.md"] == "theirs"
    assert found["report.json"] == "{}"
