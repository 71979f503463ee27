import json

import pytest
import torch

from nwc.coding.tables import TableBank
from nwc.compression.state import FinishedGroup, FinishedTensor, WorkFolder
from nwc.errors import ConfigError, FormatError


@pytest.fixture
def opened(tmp_path):
    """Opens a work folder; all are released at the end."""
    folders = []

    def open_(fingerprint, restart=False):
        work = WorkFolder(tmp_path / "out.work")
        going_on = work.open(fingerprint, restart=restart)
        folders.append(work)
        return work, going_on

    yield open_
    for work in folders:
        work.close(remove=False)


def group(name="a"):
    tensor = FinishedTensor(name=name, data=b"12345", log2_gain=1.5, relative=0.01, tokens=7)
    return FinishedGroup(tensors=[tensor], bank=TableBank(), warnings=["w"])


def test_a_run_begins_once_and_goes_on(opened):
    work, going_on = opened({"--bits": 4})
    assert not going_on
    work.write_group(0, 0, group())
    work.close(remove=False)
    work, going_on = opened({"--bits": 4})
    assert going_on
    found = work.read_group(0, 0)
    assert found.tensors == group().tensors
    assert found.warnings == ["w"]
    assert work.read_group(0, 1) is None


def test_another_run_is_refused_and_the_difference_named(opened):
    work, _ = opened({"--bits": 4, "model": "x"})
    work.write_group(0, 0, group())
    work.close(remove=False)
    with pytest.raises(ConfigError, match=r"--bits was 4, now 5\. Use .*--restart"):
        opened({"--bits": 5, "model": "x"})
    assert WorkFolder(work.path).read_group(0, 0) is not None
    work, going_on = opened({"--bits": 5, "model": "x"}, restart=True)
    assert not going_on
    assert work.read_group(0, 0) is None


def test_two_runs_at_once(opened):
    opened({})
    with pytest.raises(ConfigError, match="another run works on"):
        opened({})


def test_files_are_whole_or_absent(opened, monkeypatch):
    work, _ = opened({})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nwc.compression.state.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        work.write_group(0, 0, group())
    assert work.read_group(0, 0) is None
    assert work.group_files(0) == []


@pytest.mark.parametrize("damage", [b"", b"123456789", None])
def test_damaged_state_is_named(opened, damage):
    work, _ = opened({})
    work.write_group(0, 0, group())
    path = work.path / work.group_files(0)[0]
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with pytest.raises(FormatError, match=r"group-00.* is damaged .*--restart"):
        work.read_group(0, 0)
    work.close(remove=False)
    (work.path / "state.json").write_text("{")
    with pytest.raises(FormatError, match=r"state\.json is damaged"):
        opened({})


def test_json_and_tensors(opened):
    work, _ = opened({})
    work.write_json("x.json", {"a": [1, 2.5]})
    assert work.read_json("x.json") == {"a": [1, 2.5]}
    assert work.read_json("y.json") is None
    work.write_tensors("t.safetensors", {"a": torch.ones(2, 3).T}, {"k": 1})
    tensors, facts = work.read_tensors("t.safetensors")
    assert torch.equal(tensors["a"], torch.ones(3, 2))
    assert facts == {"k": 1}


def test_features_go_when_the_next_are_there(opened):
    work, _ = opened({})
    (work.path / "features").mkdir()
    for block in (3, 4):
        work.features_path(block).write_bytes(b"x")
    work.drop_features(4)
    assert work.features_path(4).exists()
    work.drop_features(3)
    assert not work.features_path(3).exists()


def test_emptiness(opened):
    work, _ = opened({})
    assert work.is_empty
    work.write_json("rate.json", {})
    assert work.is_empty
    work.write_group(0, 0, group())
    assert not work.is_empty
    assert json.loads((work.path / "state.json").read_text()) == {}
