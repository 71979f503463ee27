"""A run that is killed again and again: does it end in the same bytes, and was anything redone?

    python benchmarks/kills.py MODEL TEXT [--kills 20]

Makes the model once undisturbed, then once with so many kills (SIGKILL) at random moments, each
followed by the same command.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import tyro

_OPTIONS = ("--recovery-steps", "8", "--calibration-tokens", "32768")


def kills(
    model: Annotated[Path, tyro.conf.Positional],
    text: Annotated[Path, tyro.conf.Positional],
    kills: int = 20,
    seed: int = 0,
) -> None:
    """Measure."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, out = Path(scratch) / "whole", Path(scratch) / "out"
        start = time.monotonic()
        _start(model, whole, text).communicate()
        seconds = time.monotonic() - start
        seen: dict[str, int] = {}
        redone, done, attempts = 0, 0, 0
        while done < kills:
            process = _start(model, out, text)
            attempts += 1
            try:
                # Long enough to get past the imports, short enough to need all the kills.
                process.wait(4 + dice.random() * seconds / kills * 1.5)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                done += 1
            left = {
                str(path): path.stat().st_mtime_ns
                for path in (Path(scratch) / "out.work").glob("units/*/group-*.safetensors")
            }
            redone += sum(left.get(path) != when for path, when in seen.items())
            seen = left
            print(f"kill {done}: {len(left)} groups finished", flush=True)
        if not out.exists():
            _start(model, out, text).communicate()
        same = _content(whole) == _content(out)
        print(f"{done} kills, {redone} groups done again, same bytes: {same}")
        sys.exit(0 if same and not redone else 1)


def _start(model: Path, out: Path, text: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nwc", "compress", str(model), "--output", str(out)]
    return subprocess.Popen(
        [*command, "--calibration", str(text), *_OPTIONS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    tyro.cli(kills)
