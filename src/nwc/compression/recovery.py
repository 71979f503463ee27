r"""Inter-layer recovery fine-tuning (paper Sec. 3.3, App. A.5).

After some layers of a block are compressed, the parameters of the block that are not are tuned so
that its output on the calibration features is the original block's again:

.. math:: \min \; \mathbb{E} \, \| f_{\hat\theta}(x) - f_\theta(x) \|^2

Some batches are held out. What they say decides when to stop, and whether anything is changed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from nwc.compression.recorder import Group
from nwc.errors import ConfigError

ORDERS: dict[str, tuple[frozenset[str], ...] | None] = {
    "dense": None,
    "experts": (
        frozenset({""}),
        frozenset({"up", "gate_up"}),
        frozenset({"gate"}),
        frozenset({"down"}),
    ),
}
"""After which roles of matrices a block is fine-tuned (App. A.5: attention and router, all ups,
all gates, all downs). None: after every group of layers that share their input."""


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """How blocks are fine-tuned.

    Args:
        steps: optimiser steps after each group.
        learning_rate: of Adam, as a multiple of every parameter's root mean square; it falls to
            zero along a cosine.
        held_out: share of the batches that are held out.
        checks: how often the held-out batches are looked at.
        bf16: run the steps under bfloat16 autocast; what is held out is always judged in FP32.
    """

    steps: int = 64
    learning_rate: float = 0.005
    held_out: float = 0.125
    checks: int = 2
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.learning_rate < 1:
            raise ConfigError(
                f"fine-tuning has {self.steps} steps at rate {self.learning_rate}, wanted at "
                "least 1 and a rate in (0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What fine-tuning did after one stage.

    Args:
        before: squared error of the block's output on held-out batches over the power of what
            the block adds to its input.
        after: the same with the parameters that were kept.
        steps: how many were taken until then; 0 if the parameters from before were better.
    """

    before: float
    after: float
    steps: int


def stages(groups: list[Group], order: tuple[frozenset[str], ...] | None) -> list[list[Group]]:
    """What is compressed between two fine-tunings.

    Args:
        groups: of a block, in the order of use.
        order: one of `ORDERS`.
    """
    if order is None:
        return [[group] for group in groups]
    parts = []
    for roles in order:
        stage = []
        for group in groups:
            tensors = [t for t in group.tensors if t.role in roles]
            if tensors:
                stage.append(Group(tensors=tensors, hessian=group.hessian, prior=group.prior))
        if stage:
            parts.append(stage)
    return parts


def fast_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than FP32."""
    if torch.device(device).type != "cpu":
        return True
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def split_batches(count: int, share: float) -> tuple[list[int], list[int]]:
    """Batches to learn from and batches to look at, the latter spread over the text.

    Example:
        >>> split_batches(8, 0.25)
        ([0, 1, 2, 4, 5, 6], [3, 7])
        >>> split_batches(1, 0.25)
        ([0], [])
    """
    every = max(2, round(1 / share))
    held_out = [i for i in range(count) if i % every == every - 1] or list(range(1, count))[-1:]
    return [i for i in range(count) if i not in held_out], held_out


class FineTuner:
    """Tunes one block.

    Args:
        run: output of the block for features.
        inputs: batch number -> features.
        targets: batch number -> output of the original block.
        batches: how many there are.
        config: how.
        device: where the block runs.
        scratch: folder for a temporary file as large as the block.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        inputs: Callable[[int], Tensor],
        targets: Callable[[int], Tensor],
        batches: int,
        config: RecoveryConfig,
        *,
        device: str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        self._run = run
        self._inputs = inputs
        self._targets = targets
        self._config = config
        self._device = torch.device(device)
        self._scratch = scratch
        self.train, self.held_out = split_batches(batches, config.held_out)

    def tune(
        self,
        parameters: dict[str, nn.Parameter],
        frozen: dict[str, Tensor],
        stored: dict[str, torch.dtype],
        seed: int,
    ) -> Recovery:
        """Tune parameters in place.

        Args:
            parameters: by path in the block.
            frozen: for some of them, where they must not change (boolean, of the same shape).
            stored: dtype of those that the file keeps as they are, in which they are judged.
            seed: of the order of batches.
        """
        config = self._config
        before = best = self._held_out_error()
        taken = 0
        with (
            _Snapshot(parameters, self._scratch) as kept,
            StepInBackward(parameters, frozen, config.learning_rate) as adam,
        ):
            check_every = max(1, config.steps // config.checks)
            for step, i in enumerate(shuffled(self.train, config.steps, seed), start=1):
                adam.scale(0.5 * (1 + math.cos(math.pi * (step - 1) / config.steps)))
                self._loss(i).backward()
                if step % check_every == 0 or step == config.steps:
                    with stored_as(parameters, stored):
                        error = self._held_out_error()
                        if error < best:
                            best, taken = error, step
                            kept.take()
            kept.restore()
        return Recovery(before=before, after=best, steps=taken)

    def _loss(self, i: int) -> Tensor:
        x, y = self._inputs(i), self._targets(i)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.bf16):
            output = self._run(x).float()
        return (output - y.to(output)).square().mean()

    @torch.no_grad()
    def _held_out_error(self) -> float:
        error = power = 0.0
        for i in self.held_out:
            x, y = self._inputs(i), self._targets(i)
            output = self._run(x).float()
            y = y.to(output)
            error += float((output - y).square().sum(dtype=torch.float64))
            power += float((y - x.to(output)).square().sum(dtype=torch.float64))
        return error / power if power else 0.0


class _Snapshot:
    """The best values of some parameters so far, on disk: a block's weights once less in memory.

    Args:
        parameters: taken at the start.
        folder: where the file lies while it is needed.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], folder: Path | None) -> None:
        self._parameters = list(parameters.values())
        # Closed by this class, which is a context manager itself.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.take()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @torch.no_grad()
    def take(self) -> None:
        """Replace what is stored by what the parameters are."""
        self._file.seek(0)
        for p in self._parameters:
            self._file.write(p.detach().float().cpu().contiguous().numpy().data)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters what is stored."""
        self._file.seek(0)
        for p in self._parameters:
            data = bytearray(self._file.read(4 * p.numel()))
            if data:
                p.copy_(torch.frombuffer(data, dtype=torch.float32).view(p.shape))


class StepInBackward:
    """Adam for each parameter, which steps as soon as the gradient is there and then drops it.

    So gradients never exist all together. Parameters take gradients inside the context only.

    Args:
        parameters: what is tuned.
        frozen: where some of them must not change.
        learning_rate: as a multiple of a parameter's root mean square.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        frozen: dict[str, Tensor],
        learning_rate: float,
    ) -> None:
        self._parameters = list(parameters.values())
        self._handles = []
        self._optimizers = []
        for path, p in parameters.items():
            rate = learning_rate * max(float(p.detach().square().mean().sqrt()), 1e-8)
            optimizer = torch.optim.Adam([p], lr=rate, betas=(0.9, 0.95), eps=1e-12)
            p.requires_grad_(True)
            hook = self._hook(optimizer, frozen.get(path))
            self._handles.append(p.register_post_accumulate_grad_hook(hook))
            self._optimizers.append((optimizer, rate))

    def _hook(
        self, optimizer: torch.optim.Optimizer, mask: Tensor | None
    ) -> Callable[[Tensor], None]:
        def step(p: Tensor) -> None:
            if mask is not None and p.grad is not None:
                p.grad.masked_fill_(mask, 0.0)
            optimizer.step()
            p.grad = None

        return step

    def scale(self, factor: float) -> None:
        """Set the learning rates to a multiple of what they were at the start."""
        for optimizer, rate in self._optimizers:
            optimizer.param_groups[0]["lr"] = rate * factor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for p in self._parameters:
            p.requires_grad_(False)
            p.grad = None


@contextmanager
def stored_as(
    parameters: dict[str, nn.Parameter], stored: dict[str, torch.dtype]
) -> Iterator[None]:
    """Some parameters are rounded inside."""
    exact = {path: parameters[path].detach().clone() for path in stored}
    with torch.no_grad():
        for path, dtype in stored.items():
            parameters[path].copy_(exact[path].to(dtype))
        try:
            yield
        finally:
            for path, value in exact.items():
                parameters[path].copy_(value)


def shuffled(batches: list[int], steps: int, seed: int) -> list[int]:
    """So many batches in random order, all of them before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps:
        order += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return order[:steps]
