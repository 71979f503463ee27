"""Matrices that are decoded when they are used: what is done once, by whom, and what stays."""

import gc
import threading
import time
import tracemalloc

import pytest
import torch

import nwc
from nwc.codec.compressed import Decoding
from nwc.coding import container
from nwc.evaluation.loading_speed import compress_data_free, random_llama
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.shards import read_range
from nwc.integrations import packed
from nwc.integrations.packed import PackedMatrix
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural


@pytest.fixture
def threads():
    """Sets how many threads torch computes in."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _folder(path, method, width):
    weights = random_llama(path / "plain", width)
    compress_data_free(path / "plain", weights, path / "out", method, 2.0)
    return path / "out"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama of width 512: its matrices are some hundred times as large as what a parser makes
    of them."""
    return _folder(tmp_path_factory.mktemp("wide"), Ecsq(), 512)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A Llama whose codec is a network on chunks, which no compiled kernel decodes."""
    method = Neural(_paper())
    return _folder(tmp_path_factory.mktemp("networks"), method, 128)


def _paper():
    from nwc.formats.shipped import shipped_codec

    return shipped_codec("paper", 4.0)[0]


def test_streams_are_read_and_hashed_once(wide, monkeypatch):
    done = []
    digest = container.xxhash.xxh3_64_intdigest

    def reader(path, start, size):
        done.append("read")
        return read_range(path, start, size)

    def hashing(data):
        done.append("hash")
        return digest(data)

    monkeypatch.setattr(container.xxhash, "xxh3_64_intdigest", hashing)
    checkpoint = Checkpoint(wide, reader=reader)
    key = checkpoint.compressed_keys()[0]
    done.clear()
    matrix = PackedMatrix(checkpoint, [key])
    assert done == ["read", "hash"]
    out = torch.full(matrix.shape, torch.nan, dtype=torch.bfloat16)
    for _ in range(3):
        matrix.decode_into(out.fill_(torch.nan))
        assert torch.equal(out, nwc.open(wide).tensor(key, torch.bfloat16))
    assert done == ["read", "hash"] + 3 * ["hash"]  # those of nwc.open


def test_memory_is_that_of_the_file_and_of_a_block(wide):
    checkpoint = nwc.open(wide)
    keys = checkpoint.compressed_keys()
    block = 2 * sum(
        checkpoint.compressed(key).shape[0] * checkpoint.compressed(key).shape[1]
        for key in keys
        if ".layers.0." in key
    )
    packed._buffers._all.clear()
    gc.collect()
    tracemalloc.start()
    try:
        matrices = [PackedMatrix(checkpoint, [key]) for key in keys]
        with torch.no_grad():
            for matrix in matrices:
                matrix.weight(torch.bfloat16, torch.device("cpu"))
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    streams = sum(checkpoint.stream_bytes(key) for key in keys)
    assert streams < used <= 1.05 * checkpoint.file_bytes()
    assert 0 < packed.buffer_bytes() <= block
    # One for each shape: attention, the two of the network of a block.
    assert len(packed._buffers._all) == len({matrix.shape for matrix in matrices}) == 3


@pytest.mark.parametrize("kernels", ["native", "numba"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("folder", ["wide", "networks"])
def test_threads_and_inference_mode_change_nothing(
    folder, kernels, count, threads, monkeypatch, request
):
    checkpoint = nwc.open(request.getfixturevalue(folder))
    key = max(checkpoint.compressed_keys(), key=checkpoint.stream_bytes)
    if kernels == "numba":
        monkeypatch.setenv("NWC_BACKEND", "numba")
    threads(count)
    matrix = PackedMatrix(checkpoint, [key])
    expected = checkpoint.compressed(key).weight(torch.bfloat16)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = matrix.weight(torch.bfloat16, torch.device("cpu"))
            assert torch.equal(found, expected)
            del found


def _job(parts, part):
    return Decoding(parts, part, lambda: torch.zeros(0))


def test_one_thread_is_the_callers_own():
    seen = []
    packed._do(_job(5, lambda i: seen.append((i, threading.current_thread()))), 1)
    assert seen == [(i, threading.current_thread()) for i in range(5)]


def test_every_part_is_done_once_by_several_threads():
    seen, both = [], threading.Barrier(2, timeout=30)

    def part(i):
        both.wait()  # goes on only when two threads are here
        seen.append((i, threading.current_thread()))

    packed._do(_job(8, part), 2)
    assert sorted(i for i, _ in seen) == list(range(8))
    assert len({thread for _, thread in seen}) == 2


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_nothing_runs_on_after_an_error(who):
    caller, running, both = threading.current_thread(), set(), threading.Barrier(2, timeout=30)

    def part(i):
        running.add(i)
        if i < 2:
            both.wait()
            if (threading.current_thread() is caller) == (who == "caller"):
                running.discard(i)
                raise nwc.BitstreamError("damaged")
            time.sleep(0.05)
        running.discard(i)

    with pytest.raises(nwc.BitstreamError, match="damaged"):
        packed._do(_job(6, part), 2)
    assert running == set()


def test_a_damaged_stream_is_found_when_it_is_packed(wide, tmp_path):
    data = bytearray((wide / "model.safetensors").read_bytes())
    shard = nwc.open(wide).shards[0]
    key = next(k for k in shard.entries if k.endswith("down_proj.weight.nwc"))
    data[shard.header_size + shard.entries[key]["data_offsets"][1] - 100] ^= 4
    (tmp_path / "model.safetensors").write_bytes(data)
    name = key.removesuffix(".nwc")
    with pytest.raises(nwc.BitstreamError, match=f"{name}: checksum of the tensor"):
        PackedMatrix(nwc.open(tmp_path), [name])


def test_a_stream_that_lies_becomes_an_error_with_its_name(wide):
    """Checksums prove nothing about who computed them: decoding has its own checks."""
    checkpoint = nwc.open(wide)
    key = checkpoint.compressed_keys()[0]
    matrix = PackedMatrix(checkpoint, [key])
    matrix._parts[0].stream.index.entries[0, 2:] = 2**31 + 7
    with pytest.raises(nwc.BitstreamError, match=f"{key}: tile 0"):
        matrix.decode_into(torch.empty(matrix.shape, dtype=torch.bfloat16))
