r"""PocketLLM: sub-vectors in a latent space, one codebook and one small decoder for a matrix.

Tian, Wang, Han, Tang, Han, 2025 (AAAI; arXiv:2511.17637). Rows are cut into sub-vectors of d
weights. Networks f_e and f_d lead to a latent space of the same dimension and back, where each
vector is the nearest of K values (see `latent_codebook`). A file holds

.. math:: \lceil m n / d \rceil \log_2 K + 16 K d + 32 \, |f_d| \quad \text{bits}

(the paper's compression ratio: K = 2^15, d = 8 and |f_d| = 768 make 16.4 of Llama 2's FP32 up
projection). Both networks are multi-layer perceptrons of three residual layers with "reshaped
layer normalisation", which normalises a row as a whole, not every sub-vector. Their width
we could not find; x + B gelu(A norm(x)) with A from d to 2 d, without biases, has the
printed 768 parameters for d = 8: that is our reading. Also ours: the weight of the codebook's
loss (1), mean squares instead of its root, one FP32 scale for the matrix, a first codebook by
k-means, and 200 steps of 32 K weights (some 5 to 20 s for a matrix on a core).

The paper's codebook of 2^15 values suits matrices of 45 M weights. For others d and K are what
promises the least error within the bits asked for, codebook and decoder included, by the
high-resolution formula for Gaussian sources (Zador, Gersho, 1979), log2 of the error being

.. math:: \log_2 \bigl( 2 \pi G_d \, (1 + 2 / d)^{(d + 2) / 2} \bigr) - 2 \log_2(K) / d

The paper's optional fine-tuning (LoRA) is left out. Rows whose length d does not divide are padded
with zeros, whose indices are counted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nwc.coding.rate import BitBudget
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting
from nwc.methods.latent_codebook import Fit, LatentCodebook, first_codebook, fit_autoencoder

if TYPE_CHECKING:
    from jaxtyping import Float

_LAYERS = 3
_MOMENTS = {1: 1 / 12, 2: 0.0801875, 4: 0.0766032, 8: 0.0716821}
"""G_d, normalised second moment of the best known lattice of every dimension (Conway, Sloane)."""
_MAX_INDEX_BITS = 16


class Shape(NamedTuple):
    """How a matrix is cut.

    Args:
        d: weights in a sub-vector.
        index_bits: log2 K.
    """

    d: int
    index_bits: int

    def budget(self, m: int, n: int) -> BitBudget:
        """Bytes of a matrix: indices, codebook and decoder, and a scale."""
        return BitBudget(
            payload=-(-m * -(-n // self.d) * self.index_bits // 8),
            codec=2 * 2**self.index_bits * self.d + 4 * decoder_parameters(self.d),
            scales=4,
        )

    def error(self) -> float:
        """log2 of the squared error per weight of variance 1, by the formula above."""
        d = self.d
        constant = 2 * math.pi * _MOMENTS[d] * (1 + 2 / d) ** ((d + 2) / 2)
        return math.log2(constant) - 2 * self.index_bits / d


def decoder_parameters(d: int) -> int:
    """Parameters of f_d.

    Example:
        >>> decoder_parameters(8)
        768
    """
    return _LAYERS * 2 * d * 2 * d


class PocketLLM(DenseMethod):
    """See the module; H plays no part."""

    name = "pocketllm"
    settings: ClassVar = {
        float(b): Setting(f"codebook and decoder for every matrix, {b} bits in all", b)
        for b in range(1, 9)
    }
    fit: ClassVar = Fit(batch_weights=2**15)

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`."""
        return [self._quantised(layer.W) for layer in layers]

    def _quantised(self, W: Float[Tensor, "m n"]) -> Quantised:
        m, n = W.shape
        shape = best_shape(m, n, self.nominal_bits)
        scale = float(W.square().mean().sqrt())
        if scale == 0:
            return Quantised(torch.zeros_like(W), shape.budget(m, n))
        generator = torch.Generator().manual_seed(self.seed)
        x = functional.pad(W / scale, (0, -n % shape.d)).unflatten(1, (-1, shape.d))
        vectors = x.flatten(0, 1)
        model = LatentCodebook(
            Network(shape.d, generator),
            Network(shape.d, generator),
            first_codebook(vectors, 2**shape.index_bits, self.fit, generator),
            torch.float32,
        )
        restored = fit_autoencoder(x, model, self.fit, generator).flatten(1)[:, :n]
        return Quantised(restored * scale, shape.budget(m, n))


def best_shape(m: int, n: int, bits: float) -> Shape:
    """What promises the least error of all shapes that keep to the bits.

    Args:
        m: rows.
        n: columns.
        bits: per weight, codebook and decoder included; exceeded by 1 % at most, unless the
            smallest of all shapes needs more.
    """
    shapes = [
        Shape(d, k)
        for d in _MOMENTS
        for k in range(1, _MAX_INDEX_BITS + 1)
        if 2**k <= max(2, m * -(-n // d))
    ]
    fitting = [s for s in shapes if 8 * s.budget(m, n).total <= 1.01 * bits * m * n]
    if not fitting:
        return min(shapes, key=lambda s: s.budget(m, n).total)
    return min(fitting, key=Shape.error)


class Network(nn.Module):
    """A perceptron with residual layers and normalised rows, the identity at the start.

    Args:
        d: weights in a sub-vector.
        generator: of the first parameters.
    """

    def __init__(self, d: int, generator: torch.Generator) -> None:
        super().__init__()
        self.widen = nn.ParameterList(
            torch.randn(2 * d, d, generator=generator) / d**0.5 for _ in range(_LAYERS)
        )
        self.narrow = nn.ParameterList(torch.zeros(d, 2 * d) for _ in range(_LAYERS))

    def forward(self, x: Float[Tensor, "rows vectors d"]) -> Float[Tensor, "rows vectors d"]:
        """Lead every sub-vector of some rows elsewhere."""
        for A, B in zip(self.widen, self.narrow, strict=True):
            normal = functional.layer_norm(x, x.shape[1:])
            x = x + functional.gelu(normal @ A.T) @ B.T
        return x
