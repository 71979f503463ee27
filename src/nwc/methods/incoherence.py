r"""Incoherence processing: what QuIP# and QTIP share around their quantisers.

Random signs and Hadamard matrices on both sides, :math:`W' = U W V^T, H' = V H V^T`, make any
matrix look Gaussian (`numerics.hadamard`; Tseng et al. 2024, Sec. 3). The quantiser then sees
blocks of columns with feedback (`numerics.block_ldlq`), divided by one scale in FP32.

A side that tiles do not fill is padded with zeros before it is mixed, so that no weight of the
padding stays zero and feedback has room to hide errors where no input ever goes; what the padding
takes is counted. Sides that are no power of two are mixed whole, see there. Transforms follow from
a seed of 64 bits.

The scale is the root mean square, or more where that serves a sample of rows better: small
matrices can keep heavy tails, which a codebook for the normal distribution would clip.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from nwc.coding.rate import BitBudget
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised
from nwc.numerics.block_ldlq import block_feedback, block_sweep, block_upper
from nwc.numerics.hadamard import mix, mix_both
from nwc.numerics.ldlq import ldl

if TYPE_CHECKING:
    from jaxtyping import Float

_WIDTHS = (1.0, 1.2, 1.44, 1.73)
"""Factors of the scale that are tried, in order, until one serves worse than the one before."""

_SAMPLE = 2048
"""Weights that they are tried on, or a row of tiles if that is more."""

_SCALE_BYTES = 4
_SEED_BYTES = 8


class MixedHessian(NamedTuple):
    """V H V^T of the padded input, damped.

    Args:
        upper: of `block_upper` [padded, padded].
        H: itself [padded, padded].
    """

    upper: Tensor
    H: Tensor


class IncoherentMethod(DenseMethod):
    """See the module."""

    tile: ClassVar[tuple[int, int]]
    """Rows and columns that are quantised as one."""
    sweeps: ClassVar[int] = 0
    """How often all blocks are quantised once more after feedback (`block_sweep`)."""

    @abstractmethod
    def quantise_gaussian(self, x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """Quantise what looks like samples of the unit normal, in whole tiles."""

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`; without H there is no feedback."""
        mixed = None
        if H is not None:
            missing = -len(H) % self.tile[1]
            H = pad(H.cpu(), (0, missing, 0, missing))
            factor = ldl(mix(mix(H, 2 * self.seed).T, 2 * self.seed))
            damped = factor.upper * factor.d @ factor.upper.T
            mixed = MixedHessian(block_upper(factor.upper, self.tile[1]), damped)
        return [self._quantise_one(layer.W.cpu(), mixed) for layer in layers]

    def _quantise_one(self, W: Float[Tensor, "m n"], hessian: MixedHessian | None) -> Quantised:
        m, n = W.shape
        mixed = mix_both(pad(W, (0, -n % self.tile[1], 0, -m % self.tile[0])), self.seed)
        budget = BitBudget(
            payload=-(-mixed.numel() * self.setting.bits // 8),
            scales=_SCALE_BYTES,
            headers=_SEED_BYTES,
        )
        mixed /= (scale := self._scale(mixed))
        if hessian is None:
            found = self.quantise_gaussian(mixed)
        else:
            columns = mixed.T.contiguous()
            errors = columns.clone()
            block_feedback(errors, hessian.upper, self._quantise_columns, self.tile[1])
            for _ in range(self.sweeps):
                block_sweep(errors, columns, hessian.H, self._quantise_columns, self.tile[1])
            found = (columns - errors).T
        restored = mix_both(found * scale, self.seed, inverse=True)[:m, :n]
        return Quantised(restored.contiguous(), budget)

    def _quantise_columns(self, block: Float[Tensor, "g m"]) -> Float[Tensor, "g m"]:
        return self.quantise_gaussian(block.T.contiguous()).T

    def _scale(self, mixed: Float[Tensor, "m n"]) -> float:
        n = mixed.shape[1]
        rms = float(mixed.square().mean().sqrt())
        if not rms:
            return 1.0
        tiles = mixed.view(-1, self.tile[0], n)
        count = min(len(tiles), -(-_SAMPLE // (self.tile[0] * n)))
        sample = tiles[:: len(tiles) // count][:count].reshape(-1, n) / rms
        chosen, least = 1.0, float("inf")
        for width in _WIDTHS:
            restored = width * self.quantise_gaussian(sample / width)
            error = float((restored - sample).square().sum())
            if error >= least:
                break
            chosen, least = width, error
        return rms * chosen
