"""Runs that are killed go on; runs by several workers end in the same bytes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OPTIONS = ["--recovery-steps", "6", "--bits", "5", "--calibration-tokens", "4096"]


INDEPENDENT = ["--features", "original"]


def start(model, out, text, *more):
    command = [sys.executable, "-m", "nwc", "compress", model, "--output", out, *more]
    return subprocess.Popen(
        [*map(str, command), "--calibration", str(text), *OPTIONS], stderr=subprocess.PIPE
    )


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def finished_groups(work):
    """Every file of finished streams, and when it was written."""
    return {
        str(path.relative_to(work)): path.stat().st_mtime_ns
        for path in work.glob("units/*/group-*.safetensors")
    }


def kill_at(process, work, count):
    """Kill a run as soon as so many groups are finished; returns what it left."""
    while process.poll() is None and len(finished_groups(work)) < count:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    return finished_groups(work)


def undisturbed(model, text, folder, *more):
    """The folder that an undisturbed run makes."""
    process = start(model, folder / "out", text, *more)
    assert not process.communicate()[1]
    return content(folder / "out")


@pytest.fixture(scope="module")
def expected(llama, text, tmp_path_factory):
    return undisturbed(llama, text, tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="module")
def independent(llama, text, tmp_path_factory):
    """The same with blocks that do not wait for one another."""
    return undisturbed(llama, text, tmp_path_factory.mktemp("independent"), *INDEPENDENT)


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(llama, text, tmp_path, expected):
    out, work = tmp_path / "out", tmp_path / "out.work"
    seen = {}
    for count in (1, 6, 11):
        process = start(llama, out, text)
        left = kill_at(process, work, count)
        assert len(left) >= count
        assert {k: left[k] for k in seen} == seen  # nothing finished was done again
        seen = left
    process = start(llama, out, text)
    assert b"going on with" in process.communicate()[1]
    assert process.returncode == 0
    assert content(out) == expected
    assert not work.exists()


def test_another_command_does_not_touch_the_state(nwc, llama, text, tmp_path):
    out, work = tmp_path / "out", tmp_path / "out.work"
    left = kill_at(start(llama, out, text), work, 1)
    refused = nwc("compress", llama, "--output", out, "--data-free", "--bits", "3")
    assert refused.code == 2
    assert "bits was 5.0, now 3.0" in refused.err
    assert "calibration was" in refused.err
    assert finished_groups(work) == left
    begun = nwc("compress", llama, "--output", out, "--data-free", "--bits", "3", "--restart")
    assert begun.code == 0
    assert not work.exists()


def test_a_finished_output_is_not_lost_to_a_killed_run(llama, text, tmp_path, expected):
    out, work = tmp_path / "out", tmp_path / "out.work"
    out.mkdir()
    for name, data in expected.items():
        (out / name).write_bytes(data)
    kill_at(start(llama, out, text, "--overwrite"), work, 2)
    assert content(out) == expected


def test_workers_make_the_same_bytes(llama, text, tmp_path, independent):
    out = tmp_path / "out"
    process = start(llama, out, text, "--workers", "2", *INDEPENDENT)
    assert process.communicate()[1] == b""
    assert content(out) == independent


def workers_of(process):
    """Processes that a run has started to compress."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            child = f"PPid:\t{process.pid}\n" in (folder / "status").read_text()
            if child and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_worker_that_dies_is_replaced(llama, text, tmp_path, independent):
    out, work = tmp_path / "out", tmp_path / "out.work"
    process = start(llama, out, text, "--workers", "2", *INDEPENDENT)
    while process.poll() is None and not finished_groups(work):
        time.sleep(0.01)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    process.communicate()
    assert process.returncode == 0
    assert content(out) == independent


def test_workers_die_with_their_parent(llama, text, tmp_path):
    process = start(llama, tmp_path / "out", text, "--workers", "2")
    work = tmp_path / "out.work"
    while process.poll() is None and not finished_groups(work):
        time.sleep(0.01)
    workers = workers_of(process)
    assert workers
    process.kill()
    process.communicate()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}/fd/0").exists() for pid in workers):
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers outlived the run")


def test_killed_while_cleaning_up(nwc, llama, text, tmp_path, expected, monkeypatch):
    out, work = tmp_path / "out", tmp_path / "out.work"
    how = ["--output", out, "--calibration", text, *OPTIONS]

    def killed(self, *, remove):
        self._lock.close()
        raise SystemExit(137)

    monkeypatch.setattr("nwc.compression.state.WorkFolder.close", killed)
    assert nwc("compress", llama, *how).code == 137
    monkeypatch.undo()
    assert content(out) == expected
    assert work.exists()
    # Another command would lose the result; the same one ends what is left to do.
    assert nwc("compress", llama, "--output", out, "--data-free").code == 2
    assert content(out) == expected
    assert nwc("compress", llama, *how).code == 0
    assert content(out) == expected
    assert not work.exists()
    assert nwc("compress", llama, *how).code == 2  # now it exists
