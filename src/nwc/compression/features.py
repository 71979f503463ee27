"""The features between two blocks, on disk: calibration memory does not grow with its text."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor


class FeatureFile:
    """Equally shaped batches of features in a temporary file, read and replaced one by one.

    Example:
        >>> with FeatureFile() as features:
        ...     features.append(torch.ones(2, 3))
        ...     features[0] = features[0] + 1
        ...     features[0].tolist(), len(features)
        ([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], 1)
    """

    def __init__(self) -> None:
        # Closed by this class, which is a context manager itself.
        self._file = tempfile.TemporaryFile(prefix="nwc-features-")  # noqa: SIM115
        self._count = 0
        self._shape = torch.Size()
        self._dtype = torch.float32

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, batch: Tensor) -> None:
        """Add a batch; the first one sets the shape of all."""
        if not self._count:
            self._shape, self._dtype = batch.shape, batch.dtype
        self._count += 1
        self[self._count - 1] = batch

    def __setitem__(self, i: int, batch: Tensor) -> None:
        assert batch.shape == self._shape
        data = batch.detach().to(self._dtype).cpu().contiguous().view(-1).view(torch.uint8)
        self._file.seek(i * data.numel())
        self._file.write(data.numpy().data)

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < self._count:
            raise IndexError(i)
        size = self._shape.numel() * self._dtype.itemsize
        self._file.seek(i * size)
        data = np.frombuffer(bytearray(self._file.read(size)), dtype=np.uint8)
        return torch.from_numpy(data).view(self._dtype).view(self._shape)
