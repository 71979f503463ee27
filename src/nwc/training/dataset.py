"""Chunks to train on: from checkpoints' matrices, and synthetic heavy-tailed ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nwc.errors import ConfigError
from nwc.numerics.chunking import CHUNK, column_scales, to_chunks

if TYPE_CHECKING:
    from jaxtyping import Float


class ChunkSet(NamedTuple):
    """Normalised chunks, split into those trained on and those kept out."""

    train: Tensor
    held_out: Tensor


def chunks_of(matrices: Iterable[Float[Tensor, "m n"]]) -> Float[Tensor, "chunks 16"]:
    """Normalised chunks of every column of the matrices; padded ones are left out."""
    parts = [torch.zeros(0, CHUNK)]
    for W in matrices:
        whole = W.shape[0] // CHUNK * CHUNK
        scales = column_scales(W)
        if whole:
            parts.append(to_chunks(W[:whole].float(), scales)[scales > 0].reshape(-1, CHUNK))
    return torch.cat(parts)


def gather(
    train: Iterable[Float[Tensor, "m n"]],
    held_out: Iterable[Float[Tensor, "m n"]],
    limit: int,
    seed: int,
) -> ChunkSet:
    """Chunks of two sets of matrices.

    Args:
        train: matrices to train on.
        held_out: matrices to measure on.
        limit: at most so many chunks of each, drawn at random.
        seed: of that draw.

    Raises:
        ConfigError: fewer than 1,024 chunks in either set.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for name, matrices in (("to train on", train), ("to measure on", held_out)):
        chunks = chunks_of(matrices)
        if len(chunks) < 1024:
            raise ConfigError(
                f"{len(chunks)} chunks of 16 weights {name}, wanted at least 1,024: name larger "
                "checkpoints with --weights, or another --hold-out"
            )
        if len(chunks) > limit:
            chunks = chunks[torch.randperm(len(chunks), generator=generator)[:limit]]
        sets.append(chunks)
    return ChunkSet(*sets)


def synthetic(count: int, generator: torch.Generator) -> Float[Tensor, "count 16"]:
    """Unit-variance chunks of Gaussian scale mixtures, from Gaussian to very heavy tails.

    Each chunk's tail index is its own: x = normal * sqrt(w) with w log-normal of deviation up to
    1.5, divided by the mixture's own deviation.
    """
    spread = 1.5 * torch.rand(count, 1, generator=generator)
    weight = torch.exp(spread * torch.randn(count, CHUNK, generator=generator))
    normal = torch.randn(count, CHUNK, generator=generator)
    return normal * weight.sqrt() / torch.exp(spread.square() / 4)
