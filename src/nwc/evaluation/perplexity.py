"""Perplexity and divergence of language models on windows of held-out tokens.

The protocol of the quantisation literature: the text is tokenised once and cut into windows that
do not overlap; in each, every token but the first is predicted from those before it. `strided`
gives the other usual one, in which windows overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model does on a text.

    Args:
        perplexity: exp of the mean negative log-likelihood.
        tokens: predicted tokens.
        reference_perplexity: of the reference, if there is one.
        kl_divergence: mean KL(reference || model), nats per token.
        top1_agreement: share of tokens whose most likely successor is the same.
    """

    perplexity: float
    tokens: int
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    windows: Int[Tensor, "windows context"],
    reference: nn.Module | None = None,
    *,
    scored: Bool[Tensor, "windows context-1"] | None = None,
    batch_tokens: int = 2048,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> Evaluation:
    """Evaluate a causal language model, beside a reference if one is given.

    Args:
        model: maps token ids to logits.
        windows: token ids.
        reference: the original model.
        scored: which predictions count; None takes all. See `strided`.
        batch_tokens: tokens in one forward pass.
        on_batch: called with the number of windows done.
    """
    device = next(model.parameters()).device
    loss = reference_loss = divergence = 0.0
    agreeing = 0
    size = max(1, batch_tokens // windows.shape[1])
    masks = [None] * len(windows) if scored is None else scored.split(size)
    for batch, mask in zip(windows.split(size), masks, strict=False):
        ids = batch.to(device)
        counted = slice(None) if mask is None else mask.to(device)
        log_p = _log_probabilities(model, ids)
        targets = ids[:, 1:, None]
        loss -= float(log_p.gather(2, targets)[counted].double().sum())
        if reference is not None:
            log_q = _log_probabilities(reference, ids)
            reference_loss -= float(log_q.gather(2, targets)[counted].double().sum())
            each = (log_q.exp() * (log_q - log_p)).sum(dim=2)
            divergence += float(each[counted].double().sum())
            agreeing += int((log_p.argmax(dim=2) == log_q.argmax(dim=2))[counted].sum())
        on_batch(len(batch))
    tokens = windows.shape[0] * (windows.shape[1] - 1) if scored is None else int(scored.sum())
    if reference is None:
        return Evaluation(perplexity=_exp(loss / tokens), tokens=tokens)
    return Evaluation(
        perplexity=_exp(loss / tokens),
        tokens=tokens,
        reference_perplexity=_exp(reference_loss / tokens),
        kl_divergence=divergence / tokens,
        top1_agreement=agreeing / tokens,
    )


def strided(
    windows: Int[Tensor, "windows context"], stride: int
) -> tuple[Int[Tensor, "more context"], Bool[Tensor, "more context-1"]]:
    """Windows that begin every `stride` tokens, and which of their predictions are new.

    Every token but the first is scored once, with at least context - stride tokens before it
    (except in the first window).

    Args:
        windows: windows that do not overlap, one after the other.
        stride: 1 to context.

    Example:
        >>> more, scored = strided(torch.arange(8).view(2, 4), 2)
        >>> more.tolist()
        [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
        >>> scored.int().tolist()
        [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
    """
    context = windows.shape[1]
    more = windows.reshape(-1).unfold(0, context, stride)
    scored = torch.zeros(len(more), context - 1, dtype=torch.bool)
    scored[:, max(0, context - 1 - stride) :] = True
    scored[0] = True
    return more, scored


def _log_probabilities(
    model: nn.Module, ids: Int[Tensor, "batch context"]
) -> Float[Tensor, "batch context-1 vocabulary"]:
    return model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(dim=2)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
