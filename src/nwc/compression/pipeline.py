"""The generator at the heart of `nwc compress`: a plan in, compressed units out.

It yields and does not write the file; whoever iterates decides where the layers go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nwc.compression.executor import Executor
from nwc.compression.plan import Plan
from nwc.compression.state import FinishedGroup, WorkFolder
from nwc.compression.stream import BlockStream
from nwc.compression.unit import forward, visible
from nwc.errors import NWCError

_POLL_S = 0.5
_ATTEMPTS = 3
"""How often a unit is begun before a dying worker ends the run."""


@dataclass(frozen=True, kw_only=True)
class CompressedUnit:
    """A finished unit; its streams are read when asked for.

    Args:
        number: in `Plan.units`.
        block: its decoder block, if it is one.
        work: where it lies.
    """

    number: int
    block: int | None
    work: WorkFolder

    def groups(self) -> Iterator[FinishedGroup]:
        """What was compressed, in order."""
        for i in range(len(self.work.group_files(self.number))):
            group = self.work.read_group(self.number, i)
            assert group is not None
            yield group

    def tuned(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Kept tensors that fine-tuning changed, and what it did after each stage."""
        found = self.work.read_tensors(self.work.unit_file(self.number, "finished"))
        assert found is not None
        return found


def compress_model(
    plan: Plan,
    work: WorkFolder,
    executor: Executor,
    *,
    stream: BlockStream | None = None,
    drifted: bool = False,
    on_progress: Callable[[str], None] = lambda note: None,
) -> Iterator[CompressedUnit]:
    """Compress everything that is planned and not finished yet; units come in order.

    Args:
        plan: what to compress.
        work: the run's state.
        executor: where units are compressed.
        stream: calibration, if there is any.
        drifted: blocks depend on the compressed ones before them.
        on_progress: called now and then with what is being done.
    """
    count = len(plan.units)
    blocks = [unit[0].block for unit in plan.units]
    pending = [unit for unit in range(count) if not work.is_finished(unit)]
    running: dict[Future[None], int] = {}
    attempts = dict.fromkeys(pending, 0)
    given = 0
    while given < count:
        while pending and len(running) < executor.slots:
            unit = pending[0]
            needed = range(unit) if drifted else visible(unit, count)
            if not all(map(work.is_finished, needed)):
                break
            block = blocks[unit]
            if stream is not None and block is not None:
                # A lone worker writes a block's outputs as it goes; several would meet there.
                ahead = block if executor.slots == 1 else block + 1
                _supply(stream, work, "features", ahead, on_progress)
                if drifted and block:
                    _supply(stream, work, "drifted", block, on_progress)
            running[executor.submit(pending.pop(0))] = unit
            attempts[unit] += 1
        finished, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in finished:
            unit = running.pop(future)
            error = future.exception()
            if error is None:
                continue
            if not executor.lost(error):
                raise error
            if attempts[unit] == _ATTEMPTS:
                raise NWCError(
                    f"unit {unit} lost its worker {_ATTEMPTS} times ({error}); with too little "
                    "memory, fewer --workers help. The same command goes on from here"
                ) from error
            on_progress(f"a worker died; unit {unit} goes on")
            pending = sorted([*pending, unit])
        on_progress("")
        while given < count and work.is_finished(given):
            block = blocks[given]
            yield CompressedUnit(number=given, block=block, work=work)
            if block is not None:
                work.drop_features(block)
            given += 1


def _supply(
    stream: BlockStream,
    work: WorkFolder,
    kind: str,
    block: int,
    on_progress: Callable[[str], None],
) -> None:
    """Make sure that the inputs of a block are there, running uncompressed blocks before it."""
    start = block
    while start and not stream.features(work.features_path(start, kind)).complete:
        start -= 1
    current = stream.features(work.features_path(start, kind))
    if not current.complete:
        stream.embed(current)
    for number in range(start, block):
        following = stream.features(work.features_path(number + 1, kind))
        with stream.block(number) as loaded:
            forward(loaded, current, following, on_progress)
        current = following
