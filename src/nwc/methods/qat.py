r"""Quantisation-aware training: weights moved until the model works with them rounded.

Latent weights are rounded, the model runs on what comes of it, and the gradient found there moves
the latent weights as if rounding were not there (the straight-through estimator, Bengio, Leonard,
Courville, 2013, arXiv:1308.3432):

.. math:: w \leftarrow w - \eta \, \partial \ell / \partial \hat w, \quad \hat w = Q(w)

Scales count as constants in that derivative. Only matrices that will be quantised are moved: what
a file keeps as it is, embeddings, head and norms, stays as it is for every method. Latent weights
are read in BF16, which checkpoints hold exactly (those in FP16 down to 6e-5), so that rounding the
checkpoint gives precisely the model that was trained.

Some batches are held out; the latent weights that are best on them are kept, be it those of the
start. The published runs have no such guard, but weeks of training instead of minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nwc.methods.dense import Matrix

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Logits = Float[Tensor, "batch context vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Args:
        steps: of the optimiser.
        batch_tokens: in a step.
        learning_rate: of Adam, as a multiple of every matrix's root mean square, falling to zero
            along a cosine.
        held_out: share of the batches that is held out, at least one.
        checks: how often the held-out batches are looked at.
    """

    steps: int = 64
    batch_tokens: int = 1024
    learning_rate: float = 0.003
    held_out: float = 0.125
    checks: int = 8


def train_rounded(
    model: nn.Module,
    teacher: nn.Module,
    matrices: Sequence[Matrix],
    rounding: Callable[[Tensor], Tensor],
    loss: Callable[[Logits, Logits], Tensor],
    windows: Int[Tensor, "windows context"],
    schedule: Schedule,
    *,
    seed: int,
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> dict[str, Tensor]:
    """Train a model that works when its matrices are rounded.

    Args:
        model: where training starts; left with the rounded weights of its end.
        teacher: the original.
        matrices: which are rounded.
        rounding: W [m, n] -> what a file would restore.
        loss: log-probabilities of model and teacher -> mean over tokens.
        windows: at least two, to learn from.
        schedule: how long.
        seed: of the order of the windows.
        on_progress: told which share of the work is done, and what was seen.

    Returns:
        Latent weights, by name of the parameter, exact in BF16.
    """
    model.requires_grad_(False)
    names = list(dict.fromkeys(x.parameter for x in matrices))
    parameters = {name: model.get_parameter(name).requires_grad_() for name in names}
    latent = {name: p.detach().clone() for name, p in parameters.items()}

    def fill() -> None:
        for x in matrices:
            W = x.view(latent[x.parameter].bfloat16().float())
            x.view(parameters[x.parameter].data).copy_(rounding(W))

    def difference(batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
        found = model(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
        return loss(found, wanted)

    generator = torch.Generator().manual_seed(seed)
    mixed = windows[torch.randperm(len(windows), generator=generator)]
    apart = max(1, round(schedule.held_out * len(mixed)))
    rows = max(1, min(schedule.batch_tokens // mixed.shape[1], len(mixed) - apart))
    held_out, train = mixed[:apart].split(rows), mixed[apart:].split(rows)

    @torch.no_grad()
    def judge() -> float:
        fill()
        return sum(float(difference(batch)) * len(batch) for batch in held_out) / apart

    groups = [
        {"params": [latent[n]], "lr": schedule.learning_rate * _size(latent[n])} for n in names
    ]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
    )
    before = best = judge()
    kept = {name: w.clone() for name, w in latent.items()}
    every = max(1, schedule.steps // schedule.checks)
    order: list[int] = []
    for step in range(1, schedule.steps + 1):
        if not order:
            order = torch.randperm(len(train), generator=generator).tolist()
        fill()
        difference(train[order.pop()]).backward()
        for name, parameter in parameters.items():
            latent[name].grad, parameter.grad = parameter.grad, None
        adam.step()
        cosine.step()
        if step % every == 0 or step == schedule.steps:
            found = judge()
            if found < best:
                best, kept = found, {name: w.clone() for name, w in latent.items()}
        on_progress(step / schedule.steps, f"loss {best:.3g} (was {before:.3g})")
    latent |= kept
    fill()
    model.requires_grad_(False)
    return {name: w.bfloat16().float() for name, w in kept.items()}


def forward_kl(found: Logits, wanted: Logits) -> Tensor:
    """KL(teacher || model), nats per token."""
    return (wanted.exp() * (wanted - found)).sum(-1).mean()


def reverse_kl(found: Logits, wanted: Logits) -> Tensor:
    """KL(model || teacher), nats per token."""
    return (found.exp() * (found - wanted)).sum(-1).mean()


def _size(w: Tensor) -> float:
    return max(float(w.square().mean().sqrt()), 1e-8)
