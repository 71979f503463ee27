"""Compiles the C sources beside this file into the shared library that `native_library` loads.

Standard library only: the build hook of the package (`hatch_build.py`) runs this file before
anything is installed. The same library serves every processor of its architecture; it finds out
at run time which instructions there are.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / ("libnwc.dylib" if sys.platform == "darwin" else "libnwc.so")

FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")
"""-ffp-contract=off: a product and a sum rounded once would differ from torch."""


class CompileError(Exception):
    """There is no compiler, or it refused."""


def compile_library(out: Path = LIBRARY, extra: Sequence[str] = ()) -> None:
    """Compile with CC, or cc; the library appears whole or not at all.

    Args:
        out: where to put it.
        extra: further flags.

    Raises:
        CompileError: there is no compiler, or it refused.
    """
    command = shlex.split(os.environ.get("CC", "cc")) or ["cc"]
    if sys.platform == "win32" or shutil.which(command[0]) is None:
        raise CompileError(f"no C compiler: {command[0]} was not found")
    sources = [str(path) for path in sorted(FOLDER.glob("*.c"))]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        fresh = Path(folder) / out.name
        line = [*command, *FLAGS, *extra, *sources, "-o", str(fresh)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next(iter(done.stderr.strip().splitlines()), "no message")
            raise CompileError(f"{command[0]} failed with {done.returncode}: {first}")
        os.replace(fresh, out)


if __name__ == "__main__":
    compile_library()
