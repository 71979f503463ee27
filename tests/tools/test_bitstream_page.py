import re
from pathlib import Path

import numpy as np
import pytest

from nwc.coding.bitstream import Bitstream
from nwc.coding.trellis import TRELLISES

PAGE = Path(__file__).parents[2] / "docs" / "bitstream.md"


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("which", "states"), [(0, 0), (1, 8)])
def test_the_test_vectors_of_the_specification_decode(which, states):
    stream = Bitstream(bytes.fromhex("".join(_blocks("hex")[which].split())))
    lines = _blocks("symbols")[which].splitlines()
    printed = np.array([[int(v) for v in line.split()] for line in lines])
    np.testing.assert_array_equal(stream.symbols(), printed.reshape(2, 2, 16))
    assert len(stream.patches[0]) == 1
    assert stream.head.trellis == states


def test_the_trellises_of_the_specification():
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert [tuple(map(int, row)) for row in rows] == [tuple(t) for t in TRELLISES.values()]
