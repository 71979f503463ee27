import runpy
from pathlib import Path

import numpy as np
import pytest

from nwc.coding.bitstream import Bitstream
from nwc.coding.tables import TableBank

TOOL = Path(__file__).parents[2] / "tools" / "make_golden.py"


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


def test_an_existing_version_is_never_overwritten(tool, tmp_path):
    (tmp_path / "v7").mkdir()
    with pytest.raises(FileExistsError):
        tool["write"](tmp_path / "v7", [])
    assert list((tmp_path / "v7").iterdir()) == []


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_a_frozen_version_is_refused_by_name(tool, version):
    with pytest.raises(SystemExit, match="golden files never change, name a new one"):
        tool["main"]([version])


@pytest.mark.parametrize("arguments", [[], ["v1", "v2"], ["../v1"], ["v"], ["v2"]])
def test_anything_but_one_version_is_a_usage_error(tool, arguments):
    with pytest.raises(SystemExit, match="usage"):
        tool["main"](arguments)


@pytest.mark.parametrize(("version", "count"), [("v1", 10), ("v1.1", 8)])
def test_what_is_written_decodes_to_what_lies_beside_it(tool, tmp_path, version, count):
    tool["write"](tmp_path / version, tool["STREAMS"][version]())
    paths = sorted((tmp_path / version).glob("*.nwct"))
    assert len(paths) == count
    frozen = TOOL.parents[1] / "tests" / "golden" / version
    assert [p.read_bytes() for p in paths] == [(frozen / p.name).read_bytes() for p in paths]
    for path in paths:
        bank = path.with_suffix(".bank")
        shared = TableBank.from_bytes(bank.read_bytes()) if bank.exists() else None
        symbols = Bitstream(path.read_bytes(), shared).symbols()
        assert np.array_equal(symbols, np.load(path.with_suffix(".npy")))
