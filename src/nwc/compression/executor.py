"""Where units are compressed: in this process, in local worker processes, or on a Ray cluster.

A worker gets a `Job`, which it turns into a `UnitCompressor` once, and then numbers of units.
Everything else passes through the work folder, so nothing is lost with a worker but the group of
layers it was at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nwc.compression.plan import Plan, make_plan, require_skeleton
from nwc.compression.rate_control import RateController
from nwc.compression.recovery import RecoveryConfig
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import WorkFolder
from nwc.compression.stream import BlockStream
from nwc.compression.survey import row_weights
from nwc.compression.unit import UnitCompressor
from nwc.errors import ConfigError
from nwc.methods.base import LayerMethod

RATE_FILE = "rate.json"
CALIBRATION_FILE = "calibration.safetensors"


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker must be told; small enough to be sent.

    Args:
        folder: the checkpoint.
        keep: patterns of tensors to leave as they are.
        method: how to compress.
        work: the work folder, which holds calibration windows and rate estimates.
        calibrated: whether there are windows.
        recovery: fine-tuning; None leaves it out.
        order: name of an entry of `recovery.ORDERS`.
        waterfill: over columns, layers and columns, or rows as well (`survey.WATERFILLS`).
        survey_tokens: tokens that the survey looks at; 0 if there is none.
        drifted: see `UnitCompressor`.
        seed: of everything random.
        device: where blocks run.
        threads: of every worker; sums are split among them, so they are part of the result.
    """

    folder: Path
    keep: tuple[str, ...]
    method: LayerMethod
    work: Path
    calibrated: bool
    recovery: RecoveryConfig | None
    order: str
    waterfill: str
    survey_tokens: int
    drifted: bool
    seed: int
    device: str
    threads: int

    def compressor(
        self, source: SourceCheckpoint | None = None, plan: Plan | None = None
    ) -> UnitCompressor:
        """What compresses units in this process.

        Args:
            source: the checkpoint, if it is open already.
            plan: its plan, likewise.
        """
        source = source or SourceCheckpoint(self.folder)
        plan = plan or make_plan(source, self.keep)
        work = WorkFolder(self.work)
        rate = work.read_json(RATE_FILE)
        assert rate is not None
        stream = None
        if self.calibrated:
            found = work.read_tensors(CALIBRATION_FILE)
            assert found is not None
            stream = BlockStream(
                source, require_skeleton(plan), found[0]["windows"], device=self.device
            )
        return UnitCompressor(
            source=source,
            plan=plan,
            method=self.method,
            controller=RateController.from_json(rate) if self.method.steered else None,
            work=work,
            stream=stream,
            recovery=self.recovery,
            order=self.order,
            row_weights={} if self.waterfill != "rows" else row_weights(work),
            drifted=self.drifted,
            seed=self.seed,
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Executor(ABC):
    """Runs units somewhere.

    Args:
        slots: how many at once.
    """

    slots: int

    @abstractmethod
    def submit(self, unit: int) -> Future[None]:
        """Begin a unit."""

    @abstractmethod
    def lost(self, error: BaseException) -> bool:
        """Whether an error means that a worker died, so that the unit can be tried again."""

    def close(self) -> None:  # noqa: B027  (nothing to release unless there are workers)
        """Stop all workers."""


class Inline(Executor):
    """Runs units in this process, one at a time.

    Args:
        compressor: what compresses them.
        on_progress: told what is being done.
    """

    slots = 1

    def __init__(self, compressor: UnitCompressor, on_progress: Callable[[str], None]) -> None:
        self._compressor = compressor
        self._on_progress = on_progress

    def submit(self, unit: int) -> Future[None]:
        """See `Executor.submit`; returns when the unit is done."""
        future: Future[None] = Future()
        self._compressor.run(unit, self._on_progress)
        future.set_result(None)
        return future

    def lost(self, error: BaseException) -> bool:
        """Never."""
        return False


class Processes(Executor):
    """Runs units in local processes.

    Args:
        job: what they work on.
        workers: how many.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self.slots = workers
        self._job = job
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # A forked child would inherit the threads' locks of numba and torch.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self.slots, mp_context=context, initializer=_begin, initargs=(self._job,)
        )

    def submit(self, unit: int) -> Future[None]:
        """See `Executor.submit`."""
        try:
            return self._pool.submit(_run, unit)
        except BrokenExecutor:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._start()
            return self._pool.submit(_run, unit)

    def lost(self, error: BaseException) -> bool:
        """Whether the pool broke."""
        return isinstance(error, BrokenExecutor)

    def close(self) -> None:
        """Kill the workers; what they finished is on disk."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


_compressor: UnitCompressor | None = None
"""Of a worker process."""


def _begin(job: Job) -> None:
    """First thing a worker does."""
    global _compressor
    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # nobody waits for the result

    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(job.threads)
    _compressor = job.compressor()


def _run(unit: int) -> None:
    assert _compressor is not None
    _compressor.run(unit)


class RayCluster(Executor):
    """Runs units as tasks of a Ray cluster, whose nodes must see the work folder and the model.

    Args:
        job: what they work on.
        address: of the cluster, as `ray.init` takes it.

    Raises:
        ConfigError: ray is not installed, or there is no such cluster.
    """

    def __init__(self, job: Job, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                '--ray needs ray: pip install "neural-weight-compression[ray]"'
            ) from error
        self._ray: Any = ray
        _require_reachable(address)
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster at {address}: {error}") from error
        # Started with only its Ray processes' environment, a task must not spread its threads.
        self._task = ray.remote(num_cpus=job.threads, max_retries=-1)(_run_remote)
        self._job = ray.put(job)
        self.slots = max(1, int(ray.cluster_resources().get("CPU", 1)) // job.threads)

    def submit(self, unit: int) -> Future[None]:
        """See `Executor.submit`."""
        future: Future[None] = self._task.remote(self._job, unit).future()
        return future

    def lost(self, error: BaseException) -> bool:
        """Whether the worker or its node died (Ray itself tries again before it says so)."""
        errors = self._ray.exceptions
        return isinstance(
            error, errors.WorkerCrashedError | errors.NodeDiedError | errors.ObjectLostError
        )

    def close(self) -> None:
        """Leave the cluster, which stops this run's tasks."""
        self._ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise ConfigError if nobody answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # a name that Ray resolves: auto, local
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster at {address}: {error}; start one with `ray start --head`"
        ) from error


def _run_remote(job: Job, unit: int) -> None:
    global _compressor
    if not (job.work / "state.json").exists():
        raise ConfigError(
            f"{job.work} is not there on {os.uname().nodename}: with --ray, --output and the "
            "model must lie on storage that all nodes share"
        )
    torch.set_num_threads(job.threads)
    if _compressor is None or _compressor.work.path != job.work:
        _compressor = job.compressor()
    _compressor.run(unit)
