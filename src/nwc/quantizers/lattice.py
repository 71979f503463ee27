r"""Codebooks from the E8 lattice, as in QuIP# (Tseng et al., ICML 2024, Sec. 4.2, App. C).

E8P, 16 bits for 8 weights: vectors of :math:`\hat D_8 + 1/4` and of :math:`\hat D_8 - 1/4`, where
:math:`\hat D_8` has the vectors of half-odd entries whose sum is even. They have 256 absolute
values: all 227 of squared norm up to 10, and 29 of the 56 of norm 12 made of 1/2 and 3/2. Signs
that keep the sum even are 128; with the shift that makes 256 * 128 * 2 = 2^16. The authors list
their 29; by symmetry any choice has nearly the same error, and here it is the first 29 in
lexicographic order.

E81B, 8 bits for 8 weights: 0, the 240 shortest vectors of E8, and 15 of the next, of norm 4.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nwc.kernels import e8p_numba

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

D = 8
"""Weights in a vector."""


@cache
def e8p_magnitudes() -> Float32[np.ndarray, "256 8"]:
    """Absolute values of the vectors of E8P, before the shift."""
    steps = np.array(list(product((0.5, 1.5, 2.5), repeat=D)), dtype=np.float32)
    norms = np.square(steps).sum(1)
    inner = steps[norms <= 10]
    outer = steps[(norms == 12) & (steps.max(1) == 1.5)]
    return np.concatenate([inner, outer[: 256 - len(inner)]])


@cache
def e8p_entries() -> Float[Tensor, "65536 8"]:
    """All vectors of E8P."""
    signs = torch.tensor(list(product((1.0, -1.0), repeat=D)))
    magnitudes = torch.from_numpy(e8p_magnitudes())
    found = (magnitudes[:, None] * signs).flatten(0, 1)
    found = found[found.sum(1) % 2 == 0]
    return torch.cat([found + 0.25, found - 0.25])


@cache
def e81b_entries() -> Float[Tensor, "256 8"]:
    """All vectors of E81B."""
    roots = [sign for sign in product((0.5, -0.5), repeat=D) if sum(sign) % 2 == 0]
    whole = torch.zeros(2 * D * (D - 1), D)
    places = [(i, j, a, b) for i, j in combinations(range(D), 2) for a in (1, -1) for b in (1, -1)]
    for row, (i, j, a, b) in zip(whole, places, strict=True):
        row[i], row[j] = a, b
    far = torch.cat([2 * torch.eye(D), -2 * torch.eye(D)[:-1]])
    return torch.cat([torch.zeros(1, D), torch.tensor(roots), whole, far])


def nearest_e8p(x: Float[Tensor, "points 8"]) -> Float[Tensor, "points 8"]:
    """The nearest vectors of E8P; see `kernels.e8p_numba`."""
    found = np.empty(x.shape, dtype=np.float32)
    e8p_numba.nearest(x.contiguous().float().numpy(), e8p_magnitudes(), found)
    return torch.from_numpy(found)
