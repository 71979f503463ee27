"""Learned codecs of a fixed rate: the same transforms without an entropy code (Fig. 9d, App. C.2).

Between the paper's networks stands a learned codebook, of scalars or of pairs, trained with the
straight-through estimator. Every index takes the same number of bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nwc.codec.transforms import ResidualTransform
from nwc.numerics.chunking import CHUNK


class FixedRateCodec(nn.Module):
    """Transforms around a codebook.

    Args:
        bits: of a weight.
        dimension: 1 for scalars, 2 for pairs.
        width: of the networks.
        blocks: of the networks.
    """

    def __init__(self, bits: int, dimension: int, width: int, blocks: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.g_a = ResidualTransform(width, blocks, (1.0,))
        self.g_s = ResidualTransform(width, blocks, (1.0,))
        # Quantiles of a normal are where its codewords belong, or nearly.
        share = (torch.arange(2**bits) + 0.5) / 2**bits
        points = torch.distributions.Normal(0, 3**0.5).icdf(share)
        start = torch.cartesian_prod(*[points] * dimension).reshape(-1, dimension)
        self.codebook = nn.Parameter(start)

    def forward(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """What chunks [batch, 16] are restored to, and how far codewords are from latents."""
        level = torch.zeros(len(chunks), dtype=torch.long)
        z = self.g_a(chunks, level)
        pairs = z.reshape(-1, self.dimension)
        chosen = self.codebook[self._nearest(pairs)]
        gap = (chosen - pairs.detach()).square().mean()
        # The gradient passes the codebook as if it were not there.
        passed = (pairs + (chosen - pairs).detach()).reshape(-1, CHUNK)
        return self.g_s(passed, level), gap

    def _nearest(self, pairs: Tensor) -> Tensor:
        with torch.no_grad():
            if self.dimension == 1:
                ordered, order = self.codebook[:, 0].sort()
                middles = (ordered[1:] + ordered[:-1]) / 2
                return order[torch.bucketize(pairs[:, 0], middles)]
            parts = [torch.cdist(part, self.codebook).argmin(1) for part in pairs.split(2**13)]
            return torch.cat(parts)

    @torch.no_grad()
    def restored(self, chunks: Tensor) -> Tensor:
        """Chunks [batch, 16] as a reader would have them."""
        return torch.cat([self(part)[0] for part in chunks.split(2**14)])


def train(codec: FixedRateCodec, chunks: Tensor, *, steps: int, seed: int = 0) -> None:
    """Least squared error, with codewords drawn to the latents they stand for.

    Args:
        codec: is changed.
        chunks: [count, 16] of unit variance.
        steps: of Adam.
        seed: of sampling.
    """
    generator = torch.Generator().manual_seed(seed)
    rates = [
        {"params": [*codec.g_a.parameters(), *codec.g_s.parameters()], "lr": 5e-4},
        {"params": [codec.codebook], "lr": 5e-3},
    ]
    optimizer = torch.optim.Adam(rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = chunks[torch.randint(len(chunks), (512,), generator=generator)]
        restored, gap = codec(batch)
        loss = (restored - batch).square().mean() + gap
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        schedule.step()
