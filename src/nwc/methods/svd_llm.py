r"""SVD-LLM: matrices of low rank, cut where it hurts the outputs least.

Version 1 (Wang, Zheng, Wan, Zhang, 2024, arXiv:2403.07378, Sec. 3.1) takes the triangular root S
of X X^T, for which

.. math:: \|W X - W' X\|_F^2 = \|(W - W') S\|_F^2 = \sum_{i > r} \sigma_i(W S)^2

and keeps the r largest singular values of W S. Version 2 (Wang, Alam, Wan, Shen, Zhang, 2025,
arXiv:2503.12340) takes S = U sqrt(V) from the decomposition U V U^T of X X^T instead (Alg. 2), and
gives every matrix a compression ratio of its own (Alg. 1): in a group of matrices of the same
kind, one from each block, the share of parameters that goes is

.. math:: R_i = N R \frac{1 / \log L_i}{\sum_j 1 / \log L_j}

with R the share asked for and L_i the loss (the norm above, X over all calibration tokens) that it
would cause if all had the same. The paper does not say what becomes of R_i > 1 or L_i < 1: here
R_i ends where one rank is left, the others making up for it, and losses below e count as e.

The factors take 16 bits: 16 r (m + n) / (m n) bits per weight. Both versions add the damping that
everyone here adds to H. Without calibration S is the identity. The papers' fine-tuning of the
factors afterwards (LoRA) is left out: no method here brings fine-tuning of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from nwc.coding.rate import BitBudget
from nwc.errors import ConfigError
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Prepared, Quantised, Setting
from nwc.methods.whole_model import hessians, weights
from nwc.numerics.low_rank import (
    LowRank,
    Root,
    best_low_rank,
    cholesky_root,
    eigen_root,
    singular_values,
)

if TYPE_CHECKING:
    from jaxtyping import Float

FACTOR_BITS = 16


class SVDLLM(DenseMethod):
    """Version 1; see the module."""

    name = "svd_llm"
    # The rate is as continuous as the rank: quarters of a bit are as near as anyone asks.
    settings: ClassVar = {
        q / 4: Setting(f"factors of {FACTOR_BITS} bits, {q / 4:g} bits in all", FACTOR_BITS)
        for q in range(4, 4 * FACTOR_BITS + 1)
    }

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`."""
        root = None if H is None else self._root(H)
        return [self._truncated(layer, root) for layer in layers]

    def _root(self, H: Float[Tensor, "n n"]) -> Root:
        return cholesky_root(H)

    def _share(self, layer: LayerWeight) -> float:
        """Which share of its parameters a matrix may keep."""
        return self.nominal_bits / FACTOR_BITS

    def _truncated(self, layer: LayerWeight, root: Root | None) -> Quantised:
        m, n = layer.W.shape
        rank = rank_for(m, n, self._share(layer))
        left, right, _ = rounded(best_low_rank(layer.W, rank, root), layer.name)
        return Quantised(left @ right, BitBudget(payload=FACTOR_BITS * rank * (m + n) // 8))


class SVDLLMV2(SVDLLM):
    """Version 2; see the module."""

    name = "svd_llm_v2"
    shares: dict[str, float]
    """By name of the matrix, which share of its parameters it may keep; empty: all the same."""

    def __init__(self, bits: float, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(bits, seed, device)
        self.shares = {}

    def _root(self, H: Float[Tensor, "n n"]) -> Root:
        return eigen_root(H)

    def _share(self, layer: LayerWeight) -> float:
        return self.shares.get(layer.name, super()._share(layer))

    def prepare(
        self,
        model: nn.Module,
        windows: Tensor | None,
        on_progress: Callable[[float, str], None] = lambda share, note: None,
    ) -> Prepared | None:
        """Find the share of every matrix; the model stays as it is."""
        kept = self.nominal_bits / FACTOR_BITS
        seen, tokens = {}, 1
        if windows is not None:
            seen = hessians(
                model, self.matrices, windows, lambda share: on_progress(share / 2, "")
            )
            tokens = windows.numel()
        W = weights(model, self.matrices)
        groups: dict[tuple[str, int, int], list[tuple[str, float]]] = {}
        roots: tuple[Tensor, Root] | None = None  # neighbours may share their input
        for i, matrix in enumerate(self.matrices, start=1):
            H, root = seen.get(matrix.name), None
            if H is not None:
                if roots is None or roots[0] is not H:
                    roots = H, self._root(H)
                root = roots[1]
            sizes = singular_values(W[matrix.name], root)
            m, n = W[matrix.name].shape
            dropped = sizes[rank_for(m, n, kept) :].square().sum()
            loss = math.sqrt(tokens * float(dropped))
            groups.setdefault((matrix.kind, m, n), []).append((matrix.name, loss))
            on_progress(0.5 + i / len(self.matrices) / 2, matrix.name)
        for (_, m, n), group in groups.items():
            found = allocate([loss for _, loss in group], kept, least=(m + n) / (m * n))
            self.shares |= {name: share for (name, _), share in zip(group, found, strict=True)}
        return None


def rank_for(m: int, n: int, share: float) -> int:
    """The rank whose factors have this share of a matrix's parameters; at least 1.

    Example:
        >>> rank_for(4096, 4096, 0.8)  # the paper's ratio of 20 %
        1638
    """
    return max(1, min(m, n, math.floor(share * m * n / (m + n) + 1e-9)))


def allocate(losses: Sequence[float], kept: float, *, least: float = 0.0) -> list[float]:
    """Share of its parameters that every matrix of a group keeps (version 2, Alg. 1).

    Args:
        losses: what each would lose if all kept the same share.
        kept: the mean share.
        least: that each keeps.

    Example:
        >>> [round(share, 3) for share in allocate([math.e, math.e**3], 0.6)]
        [0.4, 0.8]
    """
    weight = [1 / math.log(max(loss, math.e)) for loss in losses]
    most = 1 - min(least, kept)

    def gone(factor: float) -> list[float]:
        return [min(factor * w, most) for w in weight]

    low, high = 0.0, 1 / min(weight)
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if sum(gone(middle)) < len(losses) * (1 - kept) else (low, middle)
        )
    return [1 - share for share in gone(high)]


def rounded(found: LowRank, name: str) -> LowRank:
    """Factors as a file would hold them.

    Raises:
        ConfigError: they leave the range of FP16.
    """
    left, right = found.left.half().float(), found.right.half().float()
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise ConfigError(
            f"{name}: factors of low rank leave the range of FP16; leave it out with --keep"
        )
    return LowRank(left, right, found.dropped)
