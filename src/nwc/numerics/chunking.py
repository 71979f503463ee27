"""Column normalisation and chunking (paper Sec. 3.1, Eq. 2), and their inverse.

Matrices are W [m rows, n columns] with m outputs and n inputs, whatever the checkpoint's own
orientation. A chunk is d = 16 consecutive rows of one column; the last chunk of a column is padded
with zeros, never refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK = 16
"""d, the number of weights in a chunk (paper Table 3)."""


def column_scales(W: Float[Tensor, "m n"]) -> Float[Tensor, " n"]:
    """Root mean square of every column; 0 for a dead one, subnormal weights included.

    The paper divides by the standard deviation without subtracting a mean, so the moment that
    makes the chunks unit-variance is the one about zero. It also keeps a one-row matrix alive,
    whose centred deviation is 0.

    Example:
        >>> column_scales(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        tensor([3., 0.])
    """
    W = W.float()
    # Divide by the peak first: the squares of very small or large weights leave FP32.
    peak = W.abs().amax(dim=0)
    safe = torch.where(peak > 0, peak, torch.ones_like(peak))
    scales = (W / safe).square().mean(dim=0).sqrt() * peak
    # The reciprocal of a subnormal number may be infinite.
    return torch.where(scales < torch.finfo(scales.dtype).tiny, 0.0, scales)


def chunk_count(m: int) -> int:
    """Chunks in a column of m rows, the padded one included.

    Example:
        >>> chunk_count(64), chunk_count(65)
        (4, 5)
    """
    return -(-m // CHUNK)


def to_chunks(
    W: Float[Tensor, "m n"], scales: Float[Tensor, " n"]
) -> Float[Tensor, "n chunks 16"]:
    """Cut W / scales into chunks; dead columns (scale 0) give zeros.

    Example:
        >>> to_chunks(torch.ones(18, 3), torch.full((3,), 2.0)).shape
        torch.Size([3, 2, 16])
    """
    m, n = W.shape
    inverse = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    columns = (W * inverse).T
    padding = chunk_count(m) * CHUNK - m
    return torch.nn.functional.pad(columns, (0, padding)).reshape(n, -1, CHUNK)


def from_chunks(
    chunks: Float[Tensor, "n chunks 16"], scales: Float[Tensor, " n"], m: int
) -> Float[Tensor, "m n"]:
    """Inverse of `to_chunks`: drop the padding and multiply by the scales.

    Example:
        >>> W = torch.randn(20, 4)
        >>> s = column_scales(W)
        >>> bool(torch.allclose(from_chunks(to_chunks(W, s), s, 20), W))
        True
    """
    columns = chunks.reshape(chunks.shape[0], -1)[:, :m]
    return (columns * scales[:, None]).T.contiguous()
