import sys

import pytest

from nwc.errors import ConfigError
from nwc.evaluation.benchmark import alternate, bench_rans, bench_tensor
from nwc.methods.ecsq import Ecsq


def test_rans_is_compared_with_constriction():
    found = bench_rans(bits=4.0, symbols=2**18, repeats=2)
    assert found["bits_per_symbol"] == pytest.approx(4.0, abs=0.05)
    # The same symbols under the same table cost the same.
    assert found["bits_per_symbol"] == pytest.approx(
        found["constriction_bits_per_symbol"], rel=2e-3
    )
    for side in ("decode", "encode"):
        assert found[side]["ratio_to_constriction"] > 0
    assert found["machine"]


def test_tensor_is_compared_with_safetensors():
    found = bench_tensor(Ecsq(), 2.0, size=256, repeats=2)
    assert found["shape"] == [256, 256]
    assert found["decode"]["ratio_to_safetensors"] > 0
    assert found["encode"]["ratio_to_safetensors"] > 0
    assert 3.5 < found["bits_per_parameter"] < 5


def test_constriction_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[bench\]"):
        bench_rans(symbols=2**16)


def test_tasks_take_turns():
    order = []
    seconds = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]
