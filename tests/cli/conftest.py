"""Runs the command in this process, and compresses the tiny models once a session."""

import json
import shutil
from typing import NamedTuple

import pytest

from nwc.cli.main import main


class Outcome(NamedTuple):
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def nwc(capfd):
    """Call the command: `nwc("inspect", folder)`."""

    def call(*arguments) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return Outcome(stop.value.code or 0, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def compressed(llama, text, tmp_path_factory):
    """The Llama, calibrated, at 5 bits. Tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("compressed") / "llama"
    arguments = ["compress", llama, "--output", folder, "--bits", "5", "--calibration", text]
    quick = ["--calibration-tokens", "4096", "--recovery-steps", "8"]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in [*arguments, *quick]])
    assert not stop.value.code
    return folder


@pytest.fixture
def copy(compressed, tmp_path):
    """A copy of the compressed Llama that a test may damage."""
    return shutil.copytree(compressed, tmp_path / "copy")
