"""Tensors of three dimensions: a stream for each matrix."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nwc.cli.main import main
from nwc.errors import FormatError
from nwc.formats.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stacked") / "source"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    experts = torch.randn(3, 40, 48, generator=generator)
    save_file(
        {"experts": experts, "plain": torch.randn(64, 48, generator=generator)},
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def made(source):
    out = source.parent / "out"
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(source), "--output", str(out), "--data-free", "--bits", "7"])
    assert not stop.value.code
    return out


def test_it_comes_back_whole(source, made):
    original = load_file(source / "model.safetensors")
    checkpoint = Checkpoint(made)
    assert sorted(checkpoint.keys()) == ["experts", "plain"]
    assert sorted(checkpoint.compressed_keys()) == ["experts.0", "experts.1", "experts.2", "plain"]
    assert "experts" in checkpoint
    found = checkpoint.tensor("experts")
    assert found.shape == (3, 40, 48)
    assert (found - original["experts"]).norm() < 0.1 * original["experts"].norm()
    assert torch.equal(found[1], checkpoint.tensor("experts.1"))
    assert {k: v.shape for k, v in checkpoint.state_dict().items()} == {
        k: v.shape for k, v in original.items()
    }


@pytest.mark.parametrize(
    "stacked",
    [{"experts": 4}, {"experts": 0}, {"experts": "3"}, {"experts": 10**9}, {"other": 2}],
)
def test_a_header_that_counts_wrong(made, tmp_path, stacked):
    copy = shutil.copytree(made, tmp_path / "copy")
    file = copy / "model.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    facts = json.loads(metadata["nwc"]) | {"stacked": stacked}
    save_file(load_file(file), file, metadata | {"nwc": json.dumps(facts)})
    with pytest.raises(FormatError, match=r"header is damaged|lacks matrix"):
        Checkpoint(copy)


def test_matrices_of_different_shapes_are_no_tensor(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "copy")
    file = copy / "model.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    tensors["experts.1.nwc"] = tensors["plain.nwc"].clone()
    save_file(tensors, file, metadata)
    with pytest.raises(FormatError, match=r"experts\.1 is .* the first of experts"):
        Checkpoint(copy).tensor("experts")
