import shutil

import pytest

from nwc.cli.main import main


@pytest.fixture(scope="session")
def made(untied_llama, tmp_path_factory):
    """The two-block Llama with a head of its own, data-free at 6 bits; do not change it."""
    folder = tmp_path_factory.mktemp("made") / "llama"
    with pytest.raises(SystemExit):
        main(
            ["compress", str(untied_llama), "--output", str(folder), "--bits", "6", "--data-free"]
        )
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(made, tmp_path / "copy")
