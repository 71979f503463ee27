"""What all verbs share: output, progress, errors and exit codes.

Standard output holds results only, so that `--json` can be piped; everything else goes to standard
error. Exit code 0 is success, 1 a check that failed or damaged data, 2 wrong use, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from nwc.errors import BitstreamError, NWCError

# Into a pipe or file go whole lines: only a terminal has a width to fit.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Flags of every verb."""

    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Do the work; returns the exit code."""
        raise AssertionError("every verb has its own run")


def print_json(value: Any) -> None:  # noqa: ANN401
    """Print JSON to standard output; NaN, which JSON lacks, becomes null."""
    sys.stdout.write(json.dumps(_finite(value), indent=1) + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal's standard error; gives advance(amount, note)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(amount: float = 1, note: str | None = None) -> None:
            bar.advance(task, amount)
            if note is not None:
                bar.update(task, note=note)

        yield advance


@contextmanager
def timed_bar(
    title: str, total: int, seconds: float, first: float
) -> Iterator[Callable[[float, str], None]]:
    """A bar for long work whose duration was forecast; gives show(done, note).

    Args:
        title: what is done.
        total: how much there is to do.
        seconds: the forecast.
        first: share of the total after which what was seen replaces the forecast.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]} left"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total, note="", left=duration(seconds))
        start, before = time.monotonic(), None

        def show(done: float, note: str) -> None:
            nonlocal before
            before = done if before is None else before  # of an earlier run
            spent = time.monotonic() - start
            share = (done - before) / max(1, total - before)
            expected = seconds if share < first else spent / share
            left = duration(max(0.0, expected - spent))
            bar.update(task, completed=done, left=left)
            if note:
                bar.update(task, note=note)

        yield show


def duration(seconds: float) -> str:
    """A length of time to be read.

    Example:
        >>> duration(7.4), duration(320), duration(86400)
        ('7 s', '5 min', '24.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def quiet_transformers() -> None:
    """Keep the progress bars and notices of transformers out of our output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(command: Command) -> int:
    """Run a verb and turn what can go wrong into one line and an exit code."""
    try:
        with _one_interruption():
            return command.run()
    except KeyboardInterrupt:
        err.print("interrupted; no output was written")
        return 130
    except NWCError as error:
        if command.debug:
            traceback.print_exc(file=sys.stderr)
        err.print(f"error: {error}", markup=False, style="red")
        return 1 if isinstance(error, BitstreamError) else 2
    except BrokenPipeError:
        # The reader of our output went away (`nwc inspect | head`): nobody is left to tell.
        sys.stderr.close()
        return 0
    except OSError as error:
        if command.debug:
            traceback.print_exc(file=sys.stderr)
        place = f"{error.filename}: " if error.filename else ""
        err.print(f"error: {place}{error.strerror or error}", markup=False, style="red")
        return 2


@contextmanager
def _one_interruption() -> Iterator[None]:
    """Ctrl-C and a polite kill unwind, which removes half-written folders; more of them wait."""

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        for signal_number in before:
            signal.signal(signal_number, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    # A shell starts background jobs deaf to Ctrl-C; they stay so.
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
