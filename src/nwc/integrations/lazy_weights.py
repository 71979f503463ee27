"""The tensors of a compressed checkpoint as transformers reads those of safetensors: lazily."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nwc.errors import NWCError
from nwc.formats.checkpoint import Checkpoint


class LazyWeight:
    """Stands for a tensor that is decoded when it is indexed, like a slice of safetensors.

    Args:
        checkpoint: where it is.
        key: its name.
        failures: takes in errors. transformers turns what goes wrong in its loading threads into
            a table of its own; what our errors say about the remedy would be lost.
    """

    def __init__(self, checkpoint: Checkpoint, key: str, failures: list[NWCError]) -> None:
        self._checkpoint = checkpoint
        self._key = key
        self._failures = failures

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401  (whatever indexes a tensor)
        try:
            # FP32, or what was stored: transformers knows which dtype a parameter shall have.
            return self._checkpoint.tensor(self._key)[index]
        except NWCError as error:
            self._failures.append(error)
            raise

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self._checkpoint.shape(self._key))
