import sys
import time

import numpy as np
import pytest

from nwc.coding.trellis import TRELLISES
from nwc.errors import ConfigError
from nwc.evaluation.benchmark import alternate, bench_tensor, check_small
from nwc.evaluation.coding_speed import bench_rans, make_stream
from nwc.evaluation.loading_speed import Throttle, bench_load
from nwc.evaluation.tensor_speed import bench_decode, bench_encode
from nwc.kernels import native_library, rans_numba
from nwc.methods.ecsq import Ecsq


def test_rans_is_compared_with_constriction():
    found = bench_rans(bits=4.0, symbols=2**17, repeats=2)
    assert found["bits_per_symbol"] == pytest.approx(4.0, abs=0.05)
    # The same symbols under the same table cost the same.
    assert found["bits_per_symbol"] == pytest.approx(
        found["constriction_bits_per_symbol"], rel=5e-3
    )
    assert found["machine"]
    ours = [row for row in found["rows"] if row["coder"] != "constriction"]
    kernels = 1 + len(native_library.levels() if native_library.available() else ())
    assert len(ours) == 4 * kernels + 1
    for row in ours:
        assert row["times constriction"] > 0
        assert ("share of scalar speed" in row) == (row["profile"] == "trellis")


@pytest.mark.parametrize("trellis", [None, TRELLISES[8]])
@pytest.mark.parametrize("classes", [1, 8])
def test_streams_to_be_timed_hold_what_was_drawn(trellis, classes):
    stream, integers = make_stream(4.0, 2**13, classes, trellis)
    assert np.array_equal(stream.symbols(), integers)
    assert stream.classes.rows.any() == (classes > 1)
    assert len(stream.patches[0]) == 0


def test_nothing_is_timed_while_a_kernel_differs(monkeypatch):
    plain = rans_numba.decode_tile
    monkeypatch.setattr(rans_numba, "decode_tile", lambda *a: _changed(plain(*a)))
    with pytest.raises(AssertionError, match="numba and the oracle differ; nothing is timed"):
        bench_rans(symbols=2**16)
    with pytest.raises(AssertionError, match="a kernel differs"):
        check_small(Ecsq(), 2.0)


def _changed(integers):
    integers[0, 0, 0] += 1
    return integers


@pytest.mark.parametrize("bench", [bench_decode, bench_encode])
def test_matrices_are_compared_with_safetensors(bench):
    found = bench({"ecsq": Ecsq()}, 2.0, size=128, repeats=1)
    assert found["shape"] == [128, 128]
    assert found["rows"]
    for row in found["rows"]:
        assert row["preset"] == "ecsq"
        assert row["times safetensors' time"] > 0


def test_loading_is_compared_with_safetensors():
    found = bench_load(Ecsq(), 2.0, width=128, repeats=1)
    assert found["compressed_bytes"] < found["plain_bytes"]
    assert [row["what"] for row in found["rows"]] == [
        "weights, cached",
        "model, cached",
        "weights at 200 MB/s",
    ]


def test_a_throttled_reader_takes_its_time(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    start = time.perf_counter()
    assert bytes(Throttle(1000)(path, 10, 50)) == bytes(range(10, 60))
    assert time.perf_counter() - start >= 0.05


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
