"""What the tests of GPU kernels share. Without a GPU they run in Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU if there is one, else the CPU, where Triton interprets its kernels."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install .[gpu]")
    return "cuda" if torch.cuda.is_available() else "cpu"
