r"""The non-parametric, fully factorised density of Ballé et al. (paper Sec. 3.2).

Each channel's cumulative distribution is a tiny monotone network,

.. math:: F(x) = \sigma(f_4 \circ f_3 \circ f_2 \circ f_1 (x)), \quad
   f_k(x) = g_k(\mathrm{softplus}(H_k) x + b_k), \quad g_k(x) = x + \tanh(a_k) \odot \tanh(x)

and a symbol q coded with step 1 / s has probability F((q + 1/2) / s) - F((q - 1/2) / s). The
learned quantile parameters of the original are not needed: the support is where the integer table
of `coding.tables` rounds to something.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

_HIDDEN = (3, 3, 3)
_FLOOR = 1e-9


class EntropyBottleneck(nn.Module):
    """Density of every latent channel.

    Args:
        channels: number of independent densities.
        scale: half-width of the densities at the start.
    """

    def __init__(self, channels: int, scale: float = 4.0) -> None:
        super().__init__()
        sizes = (1, *_HIDDEN, 1)
        growth = scale ** (1 / (len(sizes) - 1))
        self.matrices = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.factors = nn.ParameterList()
        for inputs, outputs in itertools.pairwise(sizes):
            start = torch.log(torch.expm1(torch.tensor(1 / growth / outputs)))
            self.matrices.append(nn.Parameter(start.expand(channels, outputs, inputs).clone()))
            self.biases.append(nn.Parameter(torch.rand(channels, outputs, 1) - 0.5))
            if outputs > 1:  # the last step has no non-linearity
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))

    @property
    def channels(self) -> int:
        """Number of densities."""
        return self.matrices[0].shape[0]

    def logits(self, x: Float[Tensor, "channels samples"]) -> Float[Tensor, "channels samples"]:
        """Logits of the cumulative distribution at x."""
        value = x[:, None, :]
        last = len(self.matrices) - 1
        for k, matrix in enumerate(self.matrices):
            value = torch.matmul(functional.softplus(matrix), value) + self.biases[k]
            if k < last:
                value = value + torch.tanh(self.factors[k]) * torch.tanh(value)
        return value[:, 0, :]

    def likelihood(
        self, z: Float[Tensor, "channels samples"], gain: Float[Tensor, "..."] | float = 1.0
    ) -> Float[Tensor, "channels samples"]:
        """Probability of the unit interval around z when latents are the density's times gain."""
        lower = self.logits((z - 0.5) / gain)
        upper = self.logits((z + 0.5) / gain)
        # Subtract on the side of the sigmoid where both are small: no cancellation in the tails.
        sign = -torch.sign(lower + upper).detach()
        mass = torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)
        return mass.abs().clamp_min(_FLOOR)
