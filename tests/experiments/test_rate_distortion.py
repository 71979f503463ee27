import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One rate of one source, at the scale that only shows that it runs."""
    study = load("rate_distortion")
    output = tmp_path_factory.mktemp("study") / "rows.jsonl"
    config = study.RateDistortion(
        output=output, scale="tiny", bits=(3,), sources=("gaussian",), schemes=SCHEMES
    )
    study.run(config)
    lines = output.read_text().splitlines()
    # What is there is not measured again.
    study.run(config)
    assert output.read_text().splitlines() == lines
    return [json.loads(line) for line in lines]


SCHEMES = ("sq", "rptc", "ecsq", "nwc")


def test_rows(rows):
    assert {row["scheme"] for row in rows} == set(SCHEMES)
    for row in rows:
        assert row["gap"] == pytest.approx(row["bits"] - row["bound"])
        assert row["bound"] == pytest.approx(-0.5 * math.log2(row["mse"]), abs=0.01)
        assert row["bits"] == pytest.approx(3, abs=0.02)
        assert 0.03 < row["gap"] < 0.7
    gaps = {row["scheme"]: row["gap"] for row in rows if row.get("states", 8) == 8}
    assert gaps["nwc"] < gaps["ecsq"] < gaps["sq"]


def test_figure(rows, tmp_path):
    pytest.importorskip("matplotlib")
    plot = load("plot_rate_distortion")
    plot.plot(rows, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    assert "| gaussian |" in plot.table(rows)
