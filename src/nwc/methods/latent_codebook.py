r"""Autoencoders whose latent vectors come from a codebook, fitted to one matrix.

An encoder makes latent vectors of the weights, each is replaced by the nearest of K values, and a
decoder makes weights of these (van den Oord, Vinyals, Kavukcuoglu, 2017, arXiv:1711.00937). The
gradient passes the choice straight through:

.. math:: \ell = \mathrm{MSE}(w, D(E(w) + [c - E(w)]_{\mathrm{const}})) + \beta \,
    \mathrm{MSE}(c, E(w))

Networks that start as the identity make this k-means to begin with. What is best on all weights is
kept, so it is not worse than that.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from nwc.quantizers.vector import k_means, nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

_SAMPLE = 32
"""Latent vectors for every value of the codebook that it starts from."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an autoencoder is fitted.

    Args:
        steps: of the optimiser.
        batch_weights: weights in a step.
        learning_rate: of Adam, falling to zero along a cosine.
        commitment: beta, which pulls values and latent vectors together.
        rounds: of k-means for the first codebook.
        checks: how often the whole matrix is looked at.
    """

    steps: int = 200
    batch_weights: int = 2**16
    learning_rate: float = 2e-3
    commitment: float = 1.0
    rounds: int = 16
    checks: int = 4


class LatentCodebook(nn.Module):
    """An encoder, a codebook and a decoder.

    Args:
        encoder: x [batch, ...] -> latents [batch, ..., d].
        decoder: latents -> x.
        codebook: [K, d]; FP16 in a file.
        precision: of the decoder in a file.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        codebook: Float[Tensor, "k d"],
        precision: torch.dtype,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.codebook = nn.Parameter(codebook)
        self.precision = precision

    def forward(self, x: Float[Tensor, "batch ..."]) -> tuple[Tensor, Tensor]:
        """What is restored of x, and the squared distance of latents and values."""
        z = self.encoder(x)
        c = self.codebook[self.codes(z)].view_as(z)
        distance = functional.mse_loss(c, z)
        return self.decoder(z + (c - z).detach()), distance

    @torch.no_grad()
    def codes(self, z: Float[Tensor, "... d"]) -> Int64[Tensor, " vectors"]:
        """The nearest value of every latent vector."""
        return nearest(z.reshape(-1, z.shape[-1]), self.codebook)

    @torch.no_grad()
    def restore(self, x: Float[Tensor, "batch ..."], rows: int) -> Float[Tensor, "batch ..."]:
        """What a file restores of x, so many parts at once."""
        decoder = copy.deepcopy(self.decoder)
        for p in decoder.parameters():
            p.copy_(p.to(self.precision).float())
        values = self.codebook.half().float()
        found = []
        for part in x.split(rows):
            z = self.encoder(part)
            found.append(decoder(values[self.codes(z)].view_as(z)))
        return torch.cat(found)


def first_codebook(
    latents: Float[Tensor, "vectors d"], size: int, fit: Fit, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Values found by k-means on a sample.

    Args:
        latents: all vectors, at least as many as values.
        size: K.
        fit: how many rounds.
        generator: of the sample.
    """
    count = min(len(latents), max(size, min(_SAMPLE * size, 2**18)))
    chosen = latents[torch.randperm(len(latents), generator=generator)[:count]]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return k_means(chosen, chosen[:size], rounds=fit.rounds, seed=seed)


def fit_autoencoder(
    x: Float[Tensor, "batch ..."],
    model: LatentCodebook,
    fit: Fit,
    generator: torch.Generator,
) -> Float[Tensor, "batch ..."]:
    """Fit an autoencoder to a matrix.

    Args:
        x: the weights, in parts that are encoded one by one.
        model: where it starts.
        fit: how.
        generator: of the batches.

    Returns:
        What is restored of x at best, of shape and place of x.
    """
    rows = max(1, fit.batch_weights // x[0].numel())
    best = model.restore(x, rows)
    least = float(functional.mse_loss(best, x))
    adam = torch.optim.Adam(model.parameters(), lr=fit.learning_rate)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(1, fit.steps)))
    )
    every = max(1, fit.steps // fit.checks)
    for step in range(1, fit.steps + 1):
        target = x[torch.randint(len(x), (min(rows, len(x)),), generator=generator)]
        found, distance = model(target)
        loss = functional.mse_loss(found, target) + fit.commitment * distance
        adam.zero_grad()
        loss.backward()
        adam.step()
        cosine.step()
        if step % every == 0 or step == fit.steps:
            restored = model.restore(x, rows)
            error = float(functional.mse_loss(restored, x))
            if error < least:
                best, least = restored, error
    return best
