import re
from pathlib import Path

import numpy as np

from nwc.coding.bitstream import Bitstream

PAGE = Path(__file__).parents[2] / "docs" / "bitstream.md"


def _block(kind: str) -> str:
    found = re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_the_test_vector_of_the_specification_decodes():
    stream = Bitstream(bytes.fromhex("".join(_block("hex").split())))
    printed = np.array([[int(v) for v in line.split()] for line in _block("symbols").splitlines()])
    np.testing.assert_array_equal(stream.symbols(), printed.reshape(2, 2, 16))
    assert len(stream.patches[0]) == 1
