r"""SeedLM: blocks of weights as seeds of a shift register (Shafipour et al., Apple, 2024).

A block of C weights is :math:`\hat w = U(s) \, t`: the seed s of a linear feedback shift register
of 16 bits makes the matrix U [C, P] from the C P states that follow it, row by row, each state v
as :math:`(v - 2^{15}) / (2^{15} - 1)` in [-1, 1] (Sec. 3.1, taps of App. A.1). Coefficients are
:math:`t = U^+ w`, rounded to 4 bits with a shared exponent of 4 bits (Sec. 3.2). The seed is the
one of all 2^16 - 1 with the least error (Algorithm 3). That takes

.. math:: (16 + 4 + 4 P) / C

bits a weight: 4 with C = 8, P = 3; 3 with C = 12, P = 4 (Eq. 3, Table 1). H plays no part.

Two readings. The exponent of the paper's text, floor(log2 max |t|), would use 5 of 16 codes; ours
is the least at which no code is clipped. The 16 exponents end at one that is enough for half of
all seeds with the largest block of the matrix, a byte each matrix. Blocks run through the matrix
row by row; if the last is not full it is filled with zeros and counted whole.

The search is exact (`kernels.seeds_numba`): about C P multiplications for every block and seed, of
which few remain to be rounded, so that a matrix of 1024 x 1024 takes about half a minute.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch

from nwc.coding.rate import BitBudget
from nwc.kernels import seeds_numba
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64
    from torch import Tensor

STATE_BITS = 16
COEFFICIENT_BITS = 4
EXPONENT_BITS = 4
_TAPS = (0, 1, 3, 12)
_LARGEST_CODE = 2 ** (COEFFICIENT_BITS - 1) - 0.5


class Shape(NamedTuple):
    """Of the matrices that seeds make.

    Args:
        C: weights in a block.
        P: coefficients.
    """

    C: int
    P: int


SHAPES = {3: Shape(12, 4), 4: Shape(8, 3)}
"""By bits a weight."""


class Seeds(NamedTuple):
    """What every seed makes.

    Args:
        U: [seeds, C, P]; seed s is row s - 1.
        inverse: pseudo-inverses of U [seeds, P, C].
        Q: orthonormal columns with the span of those of U [P, C, seeds].
    """

    U: Float32[np.ndarray, "seeds C P"]
    inverse: Float32[np.ndarray, "seeds P C"]
    Q: Float32[np.ndarray, "P C seeds"]


def states_after(
    seeds: Int64[np.ndarray, " seeds"],
    count: int,
    taps: tuple[int, ...] = _TAPS,
    state_bits: int = STATE_BITS,
) -> Int64[np.ndarray, "seeds count"]:
    """States of the shift register that follow a seed.

    Example:
        >>> states_after(np.array([4]), 8, taps=(0, 1), state_bits=3).tolist()  # Figure 4
        [[2, 5, 6, 7, 3, 1, 4, 2]]
    """
    states = []
    for _ in range(count):
        new = np.zeros_like(seeds)
        for tap in taps:
            new ^= seeds >> tap & 1
        seeds = seeds >> 1 | new << state_bits - 1
        states.append(seeds)
    return np.stack(states, axis=1)


@cache
def all_seeds(shape: Shape) -> Seeds:
    """The matrices of all seeds."""
    states = states_after(np.arange(1, 1 << STATE_BITS), shape.C * shape.P)
    half = 1 << STATE_BITS - 1
    U = ((states - half) / (half - 1)).reshape(-1, shape.C, shape.P)
    # Neighbouring states are alike, so that some matrices are all but singular: FP64 throughout.
    left, sizes, right = np.linalg.svd(U, full_matrices=False)
    inverse = right.transpose(0, 2, 1) / sizes[:, None] @ left.transpose(0, 2, 1)
    single = [x.astype(np.float32) for x in (U, inverse, left.transpose(2, 1, 0))]
    return Seeds(*map(np.ascontiguousarray, single))


def highest_exponent(blocks: Float32[np.ndarray, "blocks C"], found: Seeds) -> int:
    """An exponent that is enough for every block under the well-conditioned half of all seeds."""
    norms = np.sqrt(np.square(found.inverse).sum((1, 2)))
    largest = float(np.sqrt(np.square(blocks).sum(1).max()) * np.median(norms))
    return math.ceil(math.log2(largest / _LARGEST_CODE)) if largest else 0


class SeedLM(DenseMethod):
    """See the module."""

    name = "seedlm"
    settings: ClassVar = {
        float(bits): Setting(f"seeds for {C} weights, {P} coefficients", bits)
        for bits, (C, P) in SHAPES.items()
    }

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`; H plays no part."""
        shape = SHAPES[self.setting.bits]
        return [self._quantise_one(layer.W.cpu(), shape) for layer in layers]

    def _quantise_one(self, W: Float[Tensor, "m n"], shape: Shape) -> Quantised:
        filled = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % shape.C))
        blocks = filled.view(-1, shape.C).numpy()
        found = all_seeds(shape)
        highest = highest_exponent(blocks, found)
        exponents = (highest - 2**EXPONENT_BITS + 1, highest)
        seeds = np.empty(len(blocks), dtype=np.int64)
        restored = np.empty_like(blocks)
        seeds_numba.best_seeds(blocks, *found, exponents, seeds, restored)
        bits = STATE_BITS + EXPONENT_BITS + COEFFICIENT_BITS * shape.P
        budget = BitBudget(payload=-(-len(blocks) * bits // 8), headers=1)
        weight = torch.from_numpy(restored).flatten()[: W.numel()].view(W.shape)
        return Quantised(weight, budget)


def best_seeds_plainly(
    blocks: Float32[np.ndarray, "blocks C"], found: Seeds, exponents: tuple[int, int]
) -> Float32[np.ndarray, "blocks C"]:
    """`kernels.seeds_numba.best_seeds` written plainly, what it restores: the oracle."""
    restored = []
    for block in blocks.astype(np.float64):
        exact = found.inverse.astype(np.float64) @ block
        needed = np.ceil(np.log2(np.maximum(np.abs(exact).max(1), 1e-300) / _LARGEST_CODE))
        steps = np.exp2(np.clip(needed, *exponents))[:, None]
        codes = np.clip(np.rint(exact / steps), -8, 7)
        values = np.einsum("scp,sp->sc", found.U.astype(np.float64), codes * steps)
        restored.append(values[np.square(block - values).sum(1).argmin()])
    return np.array(restored, dtype=np.float32)
