"""The features between two blocks, on disk: calibration memory does not grow with its text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """Equally shaped batches of features in a file, read and written one by one.

    Args:
        path: the file.
        batches: how many it holds.
        shape: of one batch.
        dtype: of all.
    """

    path: Path
    batches: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def batch_bytes(self) -> int:
        """Bytes of one batch."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def complete(self) -> bool:
        """Whether the file is there with all its batches."""
        wanted = self.batches * self.batch_bytes
        return self.path.exists() and self.path.stat().st_size == wanted

    def writer(self) -> FeatureWriter:
        """Writes all batches in order; the file appears when the last one is there."""
        return FeatureWriter(self)

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < self.batches:
            raise IndexError(i)
        with self.path.open("rb") as file:
            file.seek(i * self.batch_bytes)
            data = np.frombuffer(bytearray(file.read(self.batch_bytes)), dtype=np.uint8)
        return torch.from_numpy(data).view(self.dtype).view(self.shape)


class FeatureWriter:
    """See `FeatureFile.writer`."""

    def __init__(self, target: FeatureFile) -> None:
        self.target = target
        self._written = 0
        target.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = target.path.with_suffix(".partial")
        self._file = self._partial.open("wb")

    def append(self, batch: Tensor) -> None:
        """Write the next batch."""
        assert batch.shape == self.target.shape
        data = batch.detach().to(self.target.dtype).cpu().contiguous().view(-1).view(torch.uint8)
        self._file.write(data.numpy().data)
        self._written += 1
        if self._written == self.target.batches:
            self._file.close()
            self._partial.replace(self.target.path)

    def abandon(self) -> None:
        """Stop writing; an unfinished file is removed."""
        self._file.close()
        self._partial.unlink(missing_ok=True)
