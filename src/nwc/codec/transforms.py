"""Analysis and synthesis transforms g_a, g_s (paper Sec. 3.2, Fig. 2, Table 3).

Both take chunks [..., 16] and a condition; both kinds start as a scaled identity, so that training
starts from a scalar quantiser and can only improve on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from nwc.numerics.chunking import CHUNK

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ResidualTransform(nn.Module):
    r"""The paper's network: residual blocks, each scaled by the level's embedding.

    .. math:: h \leftarrow e_{level} \odot (h + \mathrm{LeakyReLU}(A h + b))

    The paper does not print what a block holds. One linear layer each is the reading under which
    g_s of width 512 costs 2.1 MFLOP per chunk. LeakyReLU commutes with positive scaling, so the
    network keeps working on chunks a little louder or quieter than it was trained on, which is how
    one codec serves the rates between two lambdas.

    Args:
        width: hidden units.
        blocks: residual blocks.
        gains: the gain of every level that the transform starts from.
    """

    def __init__(self, width: int, blocks: int, gains: tuple[float, ...]) -> None:
        super().__init__()
        self.expand = nn.Linear(CHUNK, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.reduce = nn.Linear(width, CHUNK)
        per_block = torch.tensor(gains).pow(1.0 / blocks)
        self.level = nn.Parameter(per_block[:, None].repeat(1, width))
        nn.init.orthogonal_(self.expand.weight)
        with torch.no_grad():
            for block in self.blocks:
                assert isinstance(block, nn.Linear)
                block.weight.normal_(0, 0.1 / width**0.5)
                block.bias.zero_()
            self.expand.bias.zero_()
            self.reduce.bias.zero_()
            self.reduce.weight.copy_(self.expand.weight.T)

    def forward(
        self, chunks: Float[Tensor, "... 16"], level: Int[Tensor, "..."]
    ) -> Float[Tensor, "... 16"]:
        """Transform chunks, each with its level's embedding."""
        # A product with one-hot rows: the gradient of a gather would be a slow scatter.
        one_hot = functional.one_hot(level, len(self.level)).to(chunks.dtype)
        embedding = one_hot @ self.level
        hidden = self.expand(chunks)
        for block in self.blocks:
            hidden = embedding * (hidden + functional.leaky_relu(block(hidden)))
        return self.reduce(hidden)


class Correction(nn.Module):
    r"""A one-hidden-layer network of a vector and its log2 gain, zero at the start.

    .. math:: f(u, c) = B \tanh((A u) \odot (1 + c a) + c b + b_0)

    Args:
        size: length of the vectors: 16 corrects a chunk jointly, 1 every weight by itself.
        width: hidden units.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.expand = nn.Linear(size, width)
        self.slope = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.reduce = nn.Linear(width, size, bias=False)
        nn.init.zeros_(self.reduce.weight)

    def forward(
        self, chunks: Float[Tensor, "... 16"], log2_gain: Float[Tensor, "... 1"]
    ) -> Float[Tensor, "... 16"]:
        """The correction for each chunk."""
        u = chunks.unflatten(-1, (-1, self.size))
        c = log2_gain.unsqueeze(-1)
        hidden = functional.linear(u, self.expand.weight) * (1 + c * self.slope)
        hidden = _tanh(hidden + c * self.shift + self.expand.bias)
        return self.reduce(hidden).flatten(-2)


_FEW = 2**14
_PIECE = 64
"""From some hundred numbers on the library behind `torch.tanh` wakes all threads."""


def _tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same bits, by this thread alone if they are few: the others may be decoding."""
    if x.requires_grad or x.numel() > _FEW:
        return torch.tanh(x)
    return torch.cat([torch.tanh(piece) for piece in x.reshape(-1).split(_PIECE)]).view(x.shape)
