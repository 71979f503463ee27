"""`nwc report`: where the page goes, and what is said when there is no report."""

import json

import pytest
import tyro

from nwc.cli.console import run
from nwc.cli.report import Report

REPORT = {
    "version": "1.0",
    "nwc": "0.1.0",
    "command": "nwc compress M --output OUT",
    "versions": {"python": "3.11.2"},
    "model": {"name": "tiny", "architecture": None, "license": None},
    "method": "nwc",
    "preset": "default",
    "target_bits": 4.5,
    "target": "tensors",
    "calibrated": False,
    "calibration": None,
    "recovery": False,
    "features": None,
    "hash": "0123456789abcdef",
    "original_bytes": 4000,
    "file_bytes": 2000,
    "compressed_parameters": 1536,
    "kept_parameters": 64,
    "bits_per_parameter": {"tensors": 4.5, "file": 10.0, "payload": 4.4, "headers": 0.1},
    "tensors": [
        {
            "name": "up.weight",
            "block": 0,
            "kind": "up",
            "shape": [48, 32],
            "bits_per_parameter": 4.5,
            "bytes": 864,
            "relative_error": 0.04,
            "hessian_error": None,
            "tokens": None,
            "damping": None,
            "log2_gain": 2.1,
            "error_by_importance": None,
        }
    ],
    "blocks": [],
    "kept": [
        {"name": "norm", "shape": [64], "dtype": "BF16", "bytes": 128, "why": "not a matrix"}
    ],
    "warnings": [],
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "OUT"
    made.mkdir()
    (made / "report.json").write_text(json.dumps(REPORT))
    return made


@pytest.fixture
def report(capsys):
    """Run the verb; gives exit code, standard output and standard error."""

    def call(*arguments):
        code = run(tyro.cli(Report, args=[str(argument) for argument in arguments]))
        return code, *capsys.readouterr()

    return call


def test_beside_the_folder(report, folder):
    page = folder.parent / "OUT-report.html"
    assert report(folder) == (0, f"{page}\n", "")
    assert "up.weight" in page.read_text(encoding="utf-8")
    assert [p.name for p in folder.iterdir()] == ["report.json"]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["OUT", "OUT-report.html"]


def test_from_inside_the_folder(report, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert report(".")[:2] == (0, f"{folder}-report.html\n")


def test_elsewhere(report, folder, tmp_path):
    page = tmp_path / "new" / "page.html"
    assert report(folder, "--output", page)[0] == 0
    assert page.stat().st_mode & 0o777 == 0o644


def test_an_existing_page(report, folder, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("years of work")
    code, out, err = report(folder, "--output", page)
    assert (code, out) == (2, "")
    assert "exists" in err
    assert "--overwrite" in err
    assert page.read_text() == "years of work"
    assert report(folder, "--output", page, "--overwrite")[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_only_pages_are_written(report, folder):
    weights = folder / "model.safetensors"
    weights.write_text("weights")
    code, _, err = report(folder, "--output", weights, "--overwrite")
    assert code == 2
    assert "wanted a name ending in .html" in err
    assert weights.read_text() == "weights"
    (folder / "a.html").mkdir()
    assert "is a folder" in report(folder, "--output", folder / "a.html", "--overwrite")[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not JSON", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[1]", "wanted an object"),
        (b"{}", "lacks version"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"version": "2.0"}', "update nwc"),
        (b'{"version": "1.0"}', "make it again with nwc compress"),
        (json.dumps(REPORT | {"tensors": [{}]}).encode(), "lacks name, block"),
    ],
)
def test_reports_that_are_none(report, folder, content, said):
    (folder / "report.json").write_bytes(content)
    code, out, err = report(folder)
    assert (code, out) == (2, "")
    assert said in err
    assert "report.json" in err
    assert not (folder.parent / "OUT-report.html").exists()


def test_no_report(report, folder, tmp_path):
    (folder / "report.json").unlink()
    assert "does not exist" in report(folder)[2]
    assert "does not exist" in report(tmp_path / "nowhere")[2]


def test_text_that_is_none(report, folder):
    (folder / "report.json").write_text(json.dumps(REPORT | {"warnings": ["half \ud800"]}))
    assert report(folder)[0] == 0
