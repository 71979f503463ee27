r"""What is kept as it is anyway, tuned end to end once everything else is coded.

Norms and biases travel uncompressed, so tuning them adds no bit. With all codes frozen they are
moved, on the calibration text, towards

.. math:: \min \; \mathbb{E} \, \mathrm{KL}(p \,\|\, \hat p)

between the next-token distributions of the original and of the compressed model. Some windows are
held out; what they say decides what is kept, which may be what there was. Both models are in
memory while it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nwc.compression.pipeline import CompressedUnit
from nwc.compression.plan import Plan, require_skeleton
from nwc.compression.recovery import StepInBackward, shuffled, split_batches, stored_as
from nwc.compression.source import SourceCheckpoint
from nwc.errors import CalibrationError
from nwc.methods.base import LayerMethod

_BATCH_TOKENS = 2048
_BATCHES_AT_LEAST = 8
_LOGITS = 2**26
"""Logits of a batch at most."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How the kept parameters are tuned.

    Args:
        epochs: how often every window is learned from.
        learning_rate: of Adam, as a multiple of every parameter's root mean square.
        held_out: share of the batches that are held out.
        checks: how often the held-out batches are looked at.
        seed: of the order of batches.
    """

    epochs: int = 2
    learning_rate: float = 0.002
    held_out: float = 0.125
    checks: int = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What came of it.

    Args:
        tokens: that were learned from.
        before: KL divergence to the original on the windows held out, nats per token.
        after: the same with what is kept.
        steps: taken until then; 0 if nothing was better than what there was.
    """

    tokens: int
    before: float
    after: float
    steps: int


def distil(
    plan: Plan,
    source: SourceCheckpoint,
    method: LayerMethod,
    units: Iterable[CompressedUnit],
    windows: Tensor,
    config: DistillationConfig,
    *,
    device: str = "cpu",
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> tuple[dict[str, Tensor], Distillation]:
    """Tune norms and biases of a compressed model.

    Args:
        plan: of the model.
        source: the original.
        method: that the matrices were compressed with.
        units: all of them, finished.
        windows: tokens [windows, context] to learn from.
        config: how.
        device: where both models run.
        on_progress: told which share of the work is done, and what was seen.

    Returns:
        Kept tensors that changed, by key, in the checkpoint's dtype; and what came of it.

    Raises:
        CalibrationError: there is but one window.
    """
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(source.folder, dtype="auto").eval()
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    _fill(model, plan, method, units)
    original.to(device)
    model.to(device)
    names = _free(model, plan)
    parameters = {name: model.get_parameter(name) for name in names}
    stored = {name: source.tensor(key).dtype for name, key in names.items()}

    vocabulary = int(original.get_input_embeddings().weight.shape[0])
    if len(windows) < 2:
        raise CalibrationError(
            f"{windows.numel()} tokens make one window, of which none can be held out; distil "
            "with longer text or a shorter --context"
        )
    rows = max(1, min(_BATCH_TOKENS, _LOGITS // vocabulary) // windows.shape[1])
    rows = max(1, min(rows, len(windows) // _BATCHES_AT_LEAST))
    batches = list(windows.to(device).split(rows))
    train, held_out = split_batches(len(batches), config.held_out)

    def divergence(batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = original(batch).logits.float().log_softmax(-1)
        found = model(batch).logits.log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1).mean()

    @torch.no_grad()
    def judge() -> float:
        with stored_as(parameters, stored):
            return sum(float(divergence(batches[i])) for i in held_out) / len(held_out)

    before = best = judge()
    kept, taken = {name: p.detach().clone() for name, p in parameters.items()}, 0
    steps = config.epochs * len(train)
    every = max(1, steps // config.checks)
    with StepInBackward(parameters, {}, config.learning_rate) as adam:
        for step, i in enumerate(shuffled(train, steps, config.seed), start=1):
            adam.scale(0.5 * (1 + math.cos(math.pi * (step - 1) / steps)))
            divergence(batches[i]).backward()
            on_progress(step / steps, f"KL {best:.3g} (was {before:.3g})")
            if step % every == 0 or step == steps:
                found = judge()
                if found < best:
                    best, taken = found, step
                    kept = {name: p.detach().clone() for name, p in parameters.items()}
    changed = {names[n]: kept[n].to("cpu", stored[n]) for n in names} if taken else {}
    tokens = sum(batches[i].numel() for i in train)
    return changed, Distillation(tokens=tokens, before=before, after=best, steps=taken)


@torch.no_grad()
def _fill(
    model: nn.Module, plan: Plan, method: LayerMethod, units: Iterable[CompressedUnit]
) -> None:
    """Give the model the weights that a reader of the file will get."""
    skeleton = require_skeleton(plan)
    places = {t.name: t for t in plan.tensors}
    keys: dict[str, list[str]] = {}
    for name, key in skeleton.keys.items():
        keys.setdefault(key, []).append(name)
    for unit in units:
        for key, value in unit.tuned()[0].items():
            for name in keys[key]:
                model.get_parameter(name).copy_(value)
        for group in unit.groups():
            for tensor in group.tensors:
                t = places[tensor.name]
                assert t.slot is not None
                weight = method.restore(tensor.data, group.bank)
                path = f"{skeleton.blocks_path}.{t.block}.{t.slot.parameter}"
                parameter: Any = model.get_parameter(path)
                t.slot.view(parameter).copy_(weight.T if t.transposed else weight)


def _free(model: nn.Module, plan: Plan) -> dict[str, str]:
    """Parameters that may change -> their keys: vectors that the user did not ask to keep."""
    keys = require_skeleton(plan).keys
    own = dict(model.named_parameters())
    return {
        name: key
        for name, key in keys.items()
        if name in own
        and own[name].dim() == 1
        and key in plan.kept
        and not plan.kept[key].startswith("--keep")
    }
