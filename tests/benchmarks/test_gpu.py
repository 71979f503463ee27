"""The GPU benchmark runs from end to end, and is silent while a kernel is wrong."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(device):
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def config(script, tmp_path, device):
    if device == "cuda":
        pytest.skip("a dry run is for machines without a GPU")
    return script.Gpu(output=tmp_path / "results", layers=1, dry_run=True)


def test_a_dry_run_measures_everything(script, config):
    page = script.run(config)
    facts, *rows = map(json.loads, page.with_suffix(".jsonl").read_text().splitlines())
    assert facts["dry_run"]
    assert {row["table"] for row in rows} == {"ceiling", "one matrix", "nvCOMP", "model", "tokens"}
    assert {row["preset"] for row in rows if row["table"] == "tokens" and "preset" in row} == {
        "light",
        "calibrated",
    }
    text = page.read_text()
    assert "the times mean nothing" in text
    # Every row of the data is one of the page, every row of a table as wide as its head.
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert sum(len(block.splitlines()) - 2 for block in tables) == len(rows)
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_nothing_is_reported_while_a_kernel_is_wrong(script, config, monkeypatch):
    plain = script.DeviceMatrices.weights
    monkeypatch.setattr(
        script.DeviceMatrices,
        "weights",
        lambda self, dtype: [w * 1.001 for w in plain(self, dtype)],
    )
    with pytest.raises(SystemExit, match="nothing is reported: ecsq balanced: weights differ"):
        script.run(config)
    assert not config.output.exists()
