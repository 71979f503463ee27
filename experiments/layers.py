"""Matrices of a model one by one: their Hessians, other weights in their place.

For questions that a whole compression run does not answer: what one part of a method does to the
error of a matrix, and what that does to the model. All on the original model's inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from world import Subject, World

from nwc.calibration.corpus import token_windows
from nwc.calibration.hessian import HessianAccumulator
from nwc.coding.tables import TableBank, to_bytes
from nwc.compression.plan import PlannedTensor, make_plan
from nwc.compression.source import SourceCheckpoint, find_model
from nwc.evaluation.perplexity import Evaluation, evaluate
from nwc.integrations.loading import load_any
from nwc.integrations.tokenizer import tokenizer_of
from nwc.methods.base import LayerMethod, LayerWeight


@dataclass
class Layers:
    """The matrices of a model's blocks.

    Args:
        subject: the model, its texts.
        tokens: for Hessians.
        tries: to come near a rate, after the first.
    """

    subject: Subject
    tokens: int = 16_384
    tries: int = 3
    _hessians: dict[str, Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def folder(self) -> Path:
        """Of the model."""
        return find_model(self.subject.model)

    @cached_property
    def planned(self) -> dict[str, PlannedTensor]:
        """By name."""
        return {t.name: t for t in make_plan(SourceCheckpoint(self.folder)).tensors}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """W [m, n] in FP32 by name."""
        source = SourceCheckpoint(self.folder)
        return {
            name: source.matrix(t.key, t.transposed, t.part) for name, t in self.planned.items()
        }

    @cached_property
    def model(self) -> nn.Module:
        """The original in FP32."""
        return load_any(self.folder, torch.float32, "cpu")

    def windows(self, text: str, tokens: int) -> Tensor:
        """Token windows [windows, context]."""
        context = min(self.subject.context, 512)
        return token_windows(text, tokenizer_of(self.folder), tokens=tokens, context=context)

    def hessian(self, name: str) -> Tensor:
        """H of a matrix's input; all are measured at once. Linear layers alone have one."""
        if not self._hessians:
            self._measure()
        return self._hessians[name]

    @torch.no_grad()
    def _measure(self) -> None:
        modules = dict(self.model.named_modules())
        sums, hooks = {}, []
        for name, tensor in self.planned.items():
            module = modules[tensor.key.removesuffix(".weight")]
            sums[name] = HessianAccumulator(tensor.n, name)
            hooks.append(
                module.register_forward_pre_hook(lambda _, args, s=sums[name]: s.add(args[0]))
            )
        for batch in self.windows(self.subject.calibration, self.tokens).split(8):
            self.model(input_ids=batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        self._hessians = {name: total.finish() for name, total in sums.items()}

    @torch.no_grad()
    def judged(self, restored: dict[str, Tensor]) -> Evaluation:
        """What the model does on its held-out text with other weights in place."""
        changed = load_any(self.folder, torch.float32, "cpu")
        parameters = dict(changed.named_parameters())
        for name, W in restored.items():
            tensor = self.planned[name]
            parameters[tensor.key].copy_(W.T if tensor.transposed else W)
        windows = self.windows(self.subject.texts[0], self.subject.max_tokens or 2**18)
        return evaluate(changed, windows, self.model)

    def facts(self, found: Compressed) -> dict[str, float | None]:
        """Rate, error and what the model does, as rows have them."""
        judged = self.judged(found.restored)
        return {
            "bits": found.bits, "mse": found.mse, "perplexity": judged.perplexity,
            "reference_perplexity": judged.reference_perplexity,
            "kl_divergence": judged.kl_divergence,
        }  # fmt: skip

    def compress(
        self,
        method_of: Callable[[str], LayerMethod],
        log2_gain: float,
        *,
        feedback: bool = False,
    ) -> Compressed:
        """Every matrix by itself, at one gain.

        Args:
            method_of: name of a matrix -> the method.
            log2_gain: see `LayerMethod.compress`.
            feedback: with LDLQ.
        """
        bank, streams = TableBank(), {}
        for name, W in self.weights.items():
            H = self.hessian(name) if feedback else None
            layer = LayerWeight(name=name, W=W)
            method = method_of(name)
            streams[name] = method, method.compress([layer], H, log2_gain, bank)[0].data
        restored = {name: method.restore(data, bank) for name, (method, data) in streams.items()}
        size = sum(len(data) for _, data in streams.values()) + len(to_bytes(bank.tables))
        return Compressed(8 * size / self.count, self.error(restored), restored)

    @property
    def count(self) -> int:
        """Weights in all matrices."""
        return sum(W.numel() for W in self.weights.values())

    def error(self, restored: dict[str, Tensor]) -> float:
        """Squared error of a weight, each matrix in units of its own mean square."""
        total = 0.0
        for name, W in self.weights.items():
            total += float((restored[name] - W).square().sum() / W.square().mean())
        return total / self.count


@dataclass(frozen=True)
class Compressed:
    """All matrices of a model, compressed.

    Args:
        bits: per weight, every byte of streams and tables.
        mse: see `Layers.error`.
        restored: matrices by name.
    """

    bits: float
    mse: float
    restored: dict[str, Tensor]


def layers_of(world: World, name: str) -> Layers:
    """The matrices of a subject; at scale tiny rates are not aimed at."""
    if world.scale == "tiny":
        return Layers(world.subjects[name], tokens=1024, tries=0)
    return Layers(world.subjects[name])


def at_bits(
    layers: Layers, compress: Callable[[float], Compressed], bits: float, *, near: float = 0.02
) -> Compressed:
    """What a method does near a rate, over log2 gains."""
    gain = bits - 2.1
    found = compress(gain)
    for _ in range(layers.tries):
        if abs(found.bits - bits) < near:
            break
        gain += bits - found.bits
        found = compress(gain)
    return found
