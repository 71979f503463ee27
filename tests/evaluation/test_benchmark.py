import sys
import time

import numpy as np
import pytest
import torch

from nwc.coding.trellis import TRELLISES
from nwc.errors import ConfigError
from nwc.evaluation.benchmark import alternate, bench_tensor, check_small
from nwc.evaluation.coding_speed import bench_rans, make_stream
from nwc.evaluation.loading_speed import Throttle, bench_load
from nwc.evaluation.other_formats import other_formats, relative_error
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
    others = ("constriction", "zstd level 3")
    ours = [row for row in found["rows"] if row["coder"] not in others]
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
    assert "ecsq" in {row["preset"] for row in found["rows"]}
    for row in found["rows"]:
        assert row["times safetensors' time"] > 0
        assert row["M weights/s"] == pytest.approx(128**2 / row["seconds"] / 1e6)


def test_all_ways_to_decode_give_one_matrix():
    found = bench_decode({"ecsq": Ecsq()}, 2.0, size=128, repeats=1)
    ours = [row for row in found["rows"] if row["preset"] == "ecsq"]
    assert len({(row["decoder"], row["threads"]) for row in ours}) == len(ours)
    assert len({row["relative error"] for row in ours}) == 1
    assert 0.01 < ours[0]["relative error"] < 0.15


OTHERS = ("zstd int8", "torchao int4", "torchao nf4", "gptqmodel int4")


def test_formats_that_are_not_there_are_named(monkeypatch):
    for package in ("zstandard", "torchao.quantization", "gptqmodel.nn_modules.qlinear.torch"):
        monkeypatch.setitem(sys.modules, package, None)
    found = bench_decode({"ecsq": Ecsq()}, 2.0, size=128, repeats=1)
    assert {row["preset"] for row in found["rows"]} == {"ecsq"}
    assert tuple(found["skipped"]) == OTHERS
    assert all("pip install" in reason for reason in found["skipped"].values())
    found = bench_rans(symbols=2**16, repeats=1)
    assert "pip install" in found["skipped"]["zstd"]
    assert "zstd_bits_per_symbol" not in found


def test_a_shape_that_groups_do_not_fit_is_named():
    _, skipped = other_formats(torch.randn(32, 100))
    assert "groups of 128, got 32 x 100" in skipped["torchao int4"]
    assert "groups" not in skipped.get("zstd int8", "")


@pytest.mark.parametrize("name", OTHERS)
def test_formats_of_others_give_the_matrix_back(name):
    W = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    found, skipped = other_formats(W)
    if name in skipped:
        pytest.skip(skipped[name])
    bits, off = {
        "zstd int8": ((6.5, 8.3), 0.02),
        "torchao int4": ((4.1, 4.2), 0.12),
        "torchao nf4": ((4.1, 4.4), 0.12),
        "gptqmodel int4": ((4.1, 4.4), 0.15),
    }[name]
    assert bits[0] < found[name].bits < bits[1]
    restored = found[name].decode()
    assert restored.shape == W.shape
    assert restored.dtype == torch.bfloat16
    assert relative_error(restored, W) < off
    assert torch.equal(restored, found[name].decode())


def test_zstd_codes_the_same_symbols():
    pytest.importorskip("zstandard")
    found = bench_rans(bits=4.0, symbols=2**17, repeats=1)
    # It has no table of its own for a Gaussian, and reads whole bytes.
    assert found["bits_per_symbol"] < found["zstd_bits_per_symbol"] < 6
    rows = [row for row in found["rows"] if row["coder"] == "zstd level 3"]
    assert [row["operation"] for row in rows] == ["decode", "encode"]


def test_loading_is_compared_with_safetensors():
    found = bench_load(Ecsq(), 2.0, width=128, repeats=1)
    assert found["compressed_bytes"] < found["plain_bytes"]
    assert [row["what"] for row in found["rows"]] == [
        "weights, cached, in a new process",
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
