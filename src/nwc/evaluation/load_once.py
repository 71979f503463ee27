"""Seconds that a process takes to its first weights: `python -m nwc.evaluation.load_once FOLDER`.

A process that has loaded a model before has memory at hand. A user's has not: every page of the
weights is new, and everything that happens once happens.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from nwc.formats.checkpoint import Checkpoint, is_compressed
from nwc.formats.layout import SINGLE_FILE
from nwc.kernels.backend import backend


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Weights in memory of their own, from a compressed folder or a plain one."""
    if is_compressed(folder):
        return Checkpoint(folder).state_dict()
    return {key: value.clone() for key, value in load_file(folder / SINGLE_FILE).items()}


def in_new_process(folder: Path) -> float:
    """Seconds from a folder to weights in a process that has done nothing before but import."""
    command = [sys.executable, "-m", "nwc.evaluation.load_once", str(folder)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout)


if __name__ == "__main__":
    backend()  # finds and loads the library
    start = time.perf_counter()
    weights_of(Path(sys.argv[1]))
    print(time.perf_counter() - start)  # noqa: T201
