"""Perplexity and divergence of language models on windows of held-out tokens.

The protocol of the quantisation literature: the text is tokenised once and cut into windows that
do not overlap; in each, every token but the first is predicted from those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int


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
    batch_tokens: int = 2048,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> Evaluation:
    """Evaluate a causal language model, beside a reference if one is given.

    Args:
        model: maps token ids to logits.
        windows: token ids.
        reference: the original model.
        batch_tokens: tokens in one forward pass.
        on_batch: called with the number of windows done.
    """
    device = next(model.parameters()).device
    loss = reference_loss = divergence = 0.0
    agreeing = 0
    for batch in windows.split(max(1, batch_tokens // windows.shape[1])):
        ids = batch.to(device)
        log_p = _log_probabilities(model, ids)
        targets = ids[:, 1:, None]
        loss -= float(log_p.gather(2, targets).double().sum())
        if reference is not None:
            log_q = _log_probabilities(reference, ids)
            reference_loss -= float(log_q.gather(2, targets).double().sum())
            divergence += float((log_q.exp() * (log_q - log_p)).sum(dim=2).double().sum())
            agreeing += int((log_p.argmax(dim=2) == log_q.argmax(dim=2)).sum())
        on_batch(len(batch))
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    if reference is None:
        return Evaluation(perplexity=_exp(loss / tokens), tokens=tokens)
    return Evaluation(
        perplexity=_exp(loss / tokens),
        tokens=tokens,
        reference_perplexity=_exp(reference_loss / tokens),
        kl_divergence=divergence / tokens,
        top1_agreement=agreeing / tokens,
    )


def _log_probabilities(
    model: nn.Module, ids: Int[Tensor, "batch context"]
) -> Float[Tensor, "batch context-1 vocabulary"]:
    return model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(dim=2)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
