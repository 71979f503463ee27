"""Tiny models of several families, compressed, for whichever transformers is installed."""

from pathlib import Path
from typing import NamedTuple

import pytest
from transformers.utils import logging

import nwc
from nwc.cli.main import main

logging.disable_progress_bar()


class Pair(NamedTuple):
    """A model, its compressed folder, and that folder as an ordinary checkpoint in FP32."""

    source: Path
    compressed: Path
    restored: Path


def make_pair(source: Path, folder: Path) -> Pair:
    out, restored = folder / "out", folder / "restored"
    nwc.compress(source, out, bits=6, data_free=True)
    with pytest.raises(SystemExit) as stop:
        main(["decompress", str(out), "--output", str(restored), "--dtype", "float32"])
    assert not stop.value.code
    return Pair(source, out, restored)


EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")


@pytest.fixture(scope="session", params=["llama", "untied_llama", "gpt2", *EXPERTS])
def family(request, tmp_path_factory) -> Pair:
    """Each family in turn."""
    if request.param in EXPERTS:
        source = request.getfixturevalue("make_experts")(request.param)
    else:
        source = request.getfixturevalue(request.param)
    return make_pair(source, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def llama_pair(llama, tmp_path_factory) -> Pair:
    """The Llama alone."""
    return make_pair(llama, tmp_path_factory.mktemp("pairs"))
