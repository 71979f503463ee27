r"""ReALLM: what a decoder makes of a vector-quantised embedding, plus a matrix of low rank.

Leconte, Bedin, Nguyen, Moulines, 2024 (arXiv:2405.13155):

.. math:: W \approx D_\phi(\mathrm{VQ}(E_\psi(W))) + L_1 L_2^T

for every matrix by itself. E and D are convolutional networks that look at the matrix as an image.
The embedding is quantised in vectors of d coordinates, b bits each, with values found by k-means;
the rows carry a scale (DoRA). With an embedding of e coordinates and b_phi bits for a parameter of
D, a file holds

.. math:: b e + 16 d \, 2^{b d} + b_\phi |\phi| + 16 r (m + n) + 16 m \quad \text{bits}

The paper lets the embedding's size follow the matrix. Its settings were to be had from its code
only, whose runs quantise pairs (d = 2) with 2 bits and take rank 64; there as here the embedding
is as large as the matrix, e = m n. Rank 64 of a 4096 x 4096 matrix is half a bit per weight; other
sizes get the rank that costs them as much. The paper tunes L_1 and L_2 by gradients, block by
block, then end to end, on C4; here the best of their rank is taken off first, in squared error,
then they are the best for what the decoder left over, under H, in closed form (`low_rank`).

The published networks (HNeRV, 10^5 to 10^6 parameters, 20 K epochs on 512 x 512 patches) are out
of reach of a core: E and D are x + conv(gelu(conv(x))) with 16 channels of 3 x 3, 305 parameters
each in FP16, which see 16 rows at a time (the last ones padded, and counted), fitted for 200 steps
of 16 K weights: about 5 s for a matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nwc.coding.rate import BitBudget
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting
from nwc.methods.latent_codebook import Fit, LatentCodebook, first_codebook, fit_autoencoder
from nwc.methods.svd_llm import FACTOR_BITS, rank_for, rounded
from nwc.numerics.low_rank import Root, best_low_rank, cholesky_root

if TYPE_CHECKING:
    from jaxtyping import Float

VECTOR = 2
"""d, coordinates of the embedding that share an index."""
RANK_BITS = 0.5
"""Bits per weight for the matrix of low rank."""
_CHANNELS = 16
_STRIP = 16
"""Rows of the image that the networks see at once."""
_COLUMNS = 4096
"""Of a large matrix."""


class ReALLM(DenseMethod):
    """See the module; without H the matrix of low rank is the best in squared error."""

    name = "reallm"
    settings: ClassVar = {
        b + RANK_BITS + 16 / _COLUMNS: Setting(
            f"embedding of {b} bits in pairs, {RANK_BITS} bits of low rank", b
        )
        for b in range(1, 6)
    }
    fit: ClassVar = Fit(batch_weights=2**14)

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`."""
        root = None if H is None else cholesky_root(H)
        return [self._quantised(layer, root) for layer in layers]

    def _quantised(self, layer: LayerWeight, root: Root | None) -> Quantised:
        W, bits = layer.W, self.setting.bits
        m, n = W.shape
        rank = rank_for(m, n, RANK_BITS / FACTOR_BITS)
        # In squared error: under H the rest might be louder than W, and harder to quantise.
        first = best_low_rank(W, rank)
        decoded = self._decoded(W - first.left @ first.right, bits)
        left, right, _ = rounded(best_low_rank(W - decoded, rank, root), layer.name)
        return Quantised(decoded + left @ right, budget_of(m, n, bits, rank))

    def _decoded(self, W: Float[Tensor, "m n"], bits: int) -> Float[Tensor, "m n"]:
        """D(VQ(E(W)))."""
        m, n = W.shape
        scale = W.square().mean(1, keepdim=True).sqrt().half().float()
        x = W / torch.where(scale > 0, scale, torch.ones_like(scale))
        x = functional.pad(x, (0, -n % VECTOR, 0, -m % _STRIP)).unflatten(0, (-1, _STRIP))
        generator = torch.Generator().manual_seed(self.seed)
        vectors = x.flatten(0, 1)[:m].reshape(-1, VECTOR)
        size = min(2 ** (bits * VECTOR), len(vectors))
        model = LatentCodebook(
            Encoder(generator),
            Decoder(generator),
            first_codebook(vectors, size, self.fit, generator),
            torch.float16,
        )
        return fit_autoencoder(x, model, self.fit, generator).flatten(0, 1)[:m, :n] * scale


def budget_of(m: int, n: int, bits: int, rank: int) -> BitBudget:
    """Bytes of a matrix by the formula of the module.

    Example:
        >>> 8 * budget_of(4096, 4096, 2, 64).total / 4096**2
        2.504...
    """
    coordinates = -(-m // _STRIP) * _STRIP * -(-n // VECTOR) * VECTOR
    return BitBudget(
        payload=-(-coordinates * bits // 8) + FACTOR_BITS // 8 * rank * (m + n),
        codec=2 * VECTOR * 2 ** (bits * VECTOR) + 2 * network_parameters(),
        scales=2 * m,
    )


def network_parameters() -> int:
    """Parameters of E or D."""
    return 9 * _CHANNELS + _CHANNELS + 9 * _CHANNELS + 1


class Convolutions(nn.Module):
    """x + conv(gelu(conv(x))), the identity at the start.

    Args:
        generator: of the first parameters.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(_CHANNELS, 1, 3, 3, generator=generator) / 3)
        self.shift = nn.Parameter(torch.zeros(_CHANNELS))
        self.second = nn.Parameter(torch.zeros(1, _CHANNELS, 3, 3))
        self.offset = nn.Parameter(torch.zeros(1))

    def image(self, x: Float[Tensor, "strips rows n"]) -> Float[Tensor, "strips rows n"]:
        """An image of the same size."""
        hidden = functional.conv2d(x[:, None], self.first, self.shift, padding=1)
        added = functional.conv2d(functional.gelu(hidden), self.second, self.offset, padding=1)
        return x + added[:, 0]


class Encoder(Convolutions):
    """Strips of the matrix -> embedding in vectors."""

    def forward(self, x: Float[Tensor, "strips rows n"]) -> Float[Tensor, "strips rows vectors d"]:
        """See the class."""
        return self.image(x).unflatten(-1, (-1, VECTOR))


class Decoder(Convolutions):
    """Embedding in vectors -> strips of the matrix."""

    def forward(self, z: Float[Tensor, "strips rows vectors d"]) -> Float[Tensor, "strips rows n"]:
        """See the class."""
        return self.image(z.flatten(-2))
