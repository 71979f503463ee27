"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

They see every load and store but not the elements of a gather, which are one instruction; the
plain kernel reads the same tables at the same places one by one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nwc.kernels.native.compile import CompileError, compile_library

SCRIPT = Path(__file__).with_name("sanitised_fuzz.py")
FLAGS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OVERRUN = """
#include <stdlib.h>
__attribute__((visibility("default"))) int nwc_overrun(int n) {
    volatile char *p = malloc(16);
    return p[n];
}
"""


def runtime():
    """The sanitiser's library, which must be loaded before Python."""
    compiler = os.environ.get("CC", "cc").split()
    try:
        ask = [*compiler, "-print-file-name=libasan.so"]
        path = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler: {error}")
    if not Path(path).is_absolute():
        pytest.skip("the compiler has no libasan.so")
    return path


@pytest.fixture(scope="module")
def sanitised(tmp_path_factory):
    """The library with sanitisers, and the environment that it runs in."""
    asan = runtime()
    library = tmp_path_factory.mktemp("sanitised") / "libnwc.so"
    try:
        compile_library(library, FLAGS)
    except CompileError as error:
        pytest.skip(f"no sanitisers: {error}")
    return library, {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0"}


def test_no_byte_outside_is_touched(sanitised):
    library, environment = sanitised
    command = [sys.executable, str(SCRIPT), str(library), "0", "150"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "150 rounds" in done.stdout


def test_the_sanitiser_is_awake(sanitised, tmp_path):
    """An overrun made on purpose is found, so silence above means something."""
    _, environment = sanitised
    source, library = tmp_path / "overrun.c", tmp_path / "overrun.so"
    source.write_text(OVERRUN)
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run(
        [*compiler, "-fsanitize=address", "-fPIC", "-shared", str(source), "-o", str(library)],
        check=True,
    )
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).nwc_overrun(16)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
