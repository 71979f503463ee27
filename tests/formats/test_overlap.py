import threading
from functools import partial

import pytest
import torch

from nwc.codec.compressed import Decoding
from nwc.errors import BitstreamError, FormatError
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.overlap import overlapped
from nwc.formats.shards import read_range


def work(i, parts=3):
    out = torch.zeros(parts)

    def part(k):
        out[k] = 10 * i + k

    return Decoding(parts, part, lambda: out)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_whole(threads):
    found = list(overlapped([partial(work, i, i % 4) for i in range(20)], threads))
    for i, value in enumerate(found):
        assert torch.equal(value, 10.0 * i + torch.arange(i % 4))
    assert len(found) == 20


def test_no_more_are_begun_than_threads_can_use():
    begun = 0

    def start(i):
        nonlocal begun
        begun += 1
        return work(i)

    for done, _ in enumerate(overlapped([partial(start, i) for i in range(12)], 2), 1):
        assert begun <= done + 2


def test_the_next_is_begun_while_one_decodes():
    second_begun = threading.Event()

    def slow():
        def wait(_):
            assert second_begun.wait(30)

        return Decoding(1, wait, lambda: torch.zeros(1))

    def second():
        second_begun.set()
        return work(1)

    assert len(list(overlapped([slow, second], 1))) == 2


def test_an_error_comes_when_its_tensor_is_due():
    def damaged():
        def part(_):
            raise BitstreamError("tile 0: damaged")

        return Decoding(1, part, lambda: torch.zeros(1))

    values = overlapped([partial(work, 0), damaged, partial(work, 2)], 2)
    assert torch.equal(next(values), torch.arange(3.0))
    with pytest.raises(BitstreamError, match="tile 0"):
        next(values)
    with pytest.raises(StopIteration):
        next(values)


def test_whoever_stops_early_waits_for_no_one():
    done = []

    def start(i):
        return Decoding(1, lambda _: done.append(i), lambda: torch.zeros(1))

    values = overlapped([partial(start, i) for i in range(100)], 1)
    next(values)
    values.close()
    assert len(done) <= 3


def test_all_tensors_at_once_are_each_by_itself(made):
    checkpoint = Checkpoint(made)
    told = []
    state = checkpoint.state_dict(torch.bfloat16, on_tensor=told.append)
    assert told == list(state) == checkpoint.keys()
    for key, value in state.items():
        assert torch.equal(value, checkpoint.tensor(key, torch.bfloat16))


def test_all_bytes_go_through_the_reader(made):
    parts = []

    def reader(path, start, size):
        parts.append(size)
        return read_range(path, start, size)

    checkpoint = Checkpoint(made, reader=reader)
    state = checkpoint.state_dict()
    assert len(parts) >= len(state)
    assert sum(parts) == sum(s.file_size - s.header_size for s in checkpoint.shards)


def test_a_file_that_shrinks_while_it_is_open(made):
    def reader(path, start, size):
        return read_range(path, start, size)[: max(0, size - 1)]

    with pytest.raises(FormatError, match=r"ends 1 bytes before .* does"):
        Checkpoint(made, reader=reader).state_dict()
