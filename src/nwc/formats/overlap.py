"""Many tensors at once: while one decodes, the next are read and begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from nwc.codec.compressed import Decoding


def overlapped(starts: Iterable[Callable[[], Decoding]], threads: int) -> Iterator[Tensor]:
    """Tensors in the order of their starts.

    A start reads and parses, in the caller's thread; the parts are done by `threads` others. As
    many tensors as there are threads wait begun behind the one that is due, so that small ones
    keep all threads busy and memory holds a tensor or so for each.

    Args:
        starts: begin one tensor each.
        threads: that do the parts.

    Raises:
        Whatever a start or a part raises, when its tensor is due; nothing after it is decoded.
    """
    pool = ThreadPoolExecutor(threads)
    begun: deque[tuple[Decoding, list[Future[None]]]] = deque()
    try:
        for start in starts:
            work = start()
            begun.append((work, [pool.submit(work.part, i) for i in range(work.parts)]))
            if len(begun) > threads:
                yield _finished(*begun.popleft())
        while begun:
            yield _finished(*begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(work: Decoding, parts: list[Future[None]]) -> Tensor:
    for part in parts:
        part.result()
    return work.result()
