"""H = E[x x^T] of a layer's inputs, accumulated in FP32 (paper Eq. 3, App. A.2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nwc.errors import CalibrationError

if TYPE_CHECKING:
    from jaxtyping import Float


class HessianAccumulator:
    """Running sum of x x^T over tokens.

    Args:
        n: length of x.
        name: the layer, for messages.

    Example:
        >>> h = HessianAccumulator(2, "layer")
        >>> h.add(torch.tensor([[1.0, 2.0], [1.0, float("nan")]]))
        >>> h.finish().tolist(), h.tokens, h.non_finite
        ([[1.0, 2.0], [2.0, 4.0]], 1, 1)
    """

    def __init__(self, n: int, name: str) -> None:
        self.name = name
        self.tokens = 0
        self.non_finite = 0
        self.n = n
        self._sum = torch.zeros(n, n)
        self._finished = False
        self._file: Path | None = None

    def add(self, inputs: Float[Tensor, "... n"]) -> None:
        """Add the inputs of some tokens; tokens with a non-finite entry are counted apart."""
        x = inputs.detach().reshape(-1, self.n).float()
        # A sum is finite only if all its terms are; looking at sums makes no copy of x.
        if not torch.isfinite(x.sum(dim=1)).all():
            finite = torch.isfinite(x).all(dim=1)
            self.non_finite += int((~finite).sum())
            x = x[finite]
        self.tokens += len(x)
        if self._sum.device != x.device:
            self._sum = self._sum.to(x.device)
        self._sum.addmm_(x.T, x)

    def add_to(self, total: Float[Tensor, "n n"]) -> None:
        """Add the sum so far to another one."""
        total += self._sum.to(total.device)

    def spill(self, file: Path) -> None:
        """Keep the sum in a file until `finish`, which removes it; nothing can be added before."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self._sum.cpu().numpy().data)
        self._file = file
        self._sum = torch.empty(0)

    def finish(self, prior: Float[Tensor, "n n"] | None = None) -> Float[Tensor, "n n"]:
        """The mean, in the memory of the sum: nothing can be added after the first call.

        Args:
            prior: expected H; fewer tokens than H has rows leave it singular, and this takes the
                place of the missing ones.

        Raises:
            CalibrationError: the layer saw no usable token, or inputs too large to square.
        """
        if self._finished:
            return self._sum
        if self.tokens == 0 and prior is None:
            seen = f"{self.non_finite} tokens, all with non-finite inputs"
            raise CalibrationError(
                f"{self.name} saw {seen if self.non_finite else 'no tokens'}; "
                "calibrate with other text, or with --data-free"
            )
        if self._file is not None:
            data = bytearray(self._file.read_bytes())
            self._sum = torch.frombuffer(data, dtype=torch.float32).view(self.n, self.n)
            self._file.unlink()
            self._file = None
        # A sum of squares is finite only if all products are.
        if not torch.isfinite(self._sum.diagonal()).all():
            raise CalibrationError(
                f"{self.name} saw inputs whose squares leave FP32; the checkpoint or the "
                "calibration text is broken; use --data-free"
            )
        self._finished = True
        missing = 0 if prior is None else max(0, self.n - self.tokens)
        if prior is not None and missing:
            self._sum.add_(prior.to(self._sum.device), alpha=missing)
        return self._sum.div_(self.tokens + missing)
