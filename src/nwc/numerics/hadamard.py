r"""Random orthogonal transforms that are cheap: signs, then a Hadamard matrix.

They spread outliers over all weights (QuIP, Chee et al. 2023), after which any source looks
Gaussian. A side of length p 2^a, p odd, is transformed by the Kronecker product of a random
orthogonal matrix of size p and the Hadamard matrix of size 2^a, so that every side is mixed whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nwc.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float


def hadamard(x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Multiply by the orthonormal Hadamard matrix (Sylvester's), which is its own inverse.

    Raises:
        ConfigError: n is not a power of two.

    Example:
        >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise ConfigError(f"length {n} is not a power of two; pad it or use `mix`")
    size = 1
    while size < n:
        a, b = x.unflatten(-1, (-1, 2, size)).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        size *= 2
    return x * n**-0.5


def mix(x: Float[Tensor, "... n"], seed: int, *, inverse: bool = False) -> Float[Tensor, "... n"]:
    """The random orthogonal transform of the last side, or its inverse.

    Args:
        x: anything.
        seed: of signs and of the matrix of odd size.
        inverse: undo it.

    Example:
        >>> x = torch.randn(3, 24)
        >>> torch.allclose(mix(mix(x, 7), 7, inverse=True), x, atol=1e-5)
        True
    """
    n = x.shape[-1]
    power = n & -n
    generator = torch.Generator().manual_seed(seed)
    signs = (2 * torch.randint(0, 2, (n,), generator=generator) - 1).to(x.dtype)
    q = torch.linalg.qr(torch.randn(n // power, n // power, generator=generator))[0].to(x.dtype)
    if inverse:
        parts = hadamard(x.unflatten(-1, (-1, power)))
        return (q.T @ parts).flatten(-2) * signs
    parts = (x * signs).unflatten(-1, (-1, power))
    return hadamard(q @ parts).flatten(-2)


def mix_both(W: Float[Tensor, "m n"], seed: int, *, inverse: bool = False) -> Float[Tensor, "m n"]:
    """`mix` of rows and columns."""
    rows = mix(W, 2 * seed, inverse=inverse)
    return mix(rows.T, 2 * seed + 1, inverse=inverse).T.contiguous()
