r"""One look at the whole model before anything is compressed: what matters, and how much.

The model's loss grows by about :math:`\frac12 \sum_i g_i\, (E H E^T)_{ii}` with the error E of a
layer, g_i being the second moment of the loss's gradient at output i and H = E[x x^T] (the Fisher
information, output by output; labels are sampled from the model itself). A forward pass gives H
and with it D of H = L^T D L, a backward pass gives g. Both go block by block, features and
gradients waiting on disk, so that no more than a block is in memory.

The labels of a language model are the next tokens, those of a classifier of images its classes.
Other encoders of images have no loss of their own: nothing is known of g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nwc.compression.experts import WATCHER
from nwc.compression.features import FeatureFile
from nwc.compression.plan import Plan, PlannedTensor
from nwc.compression.recorder import InputRecorder
from nwc.compression.state import WorkFolder
from nwc.compression.stream import BlockStream, LoadedBlock
from nwc.numerics.ldlq import ldl

SURVEY_FILE = "survey.safetensors"
WATERFILLS = ("columns", "layers", "rows")
"""What steps differ over: columns alone, layers as well, rows as well."""

_FOLDER = "survey"
_HEAD_ENTRIES = 2**24
"""Logits at a time."""

_SHARED = 0.1
"""Multiple of the mean over all experts of a layer added to what an expert saw."""


class Sensitivity(NamedTuple):
    """What was seen of a matrix.

    Args:
        d: [n], diagonal of D.
        row_weights: [m], second moment of the gradient at its outputs.
    """

    d: Tensor
    row_weights: Tensor


class Survey:
    """See the module.

    Args:
        plan: whose matrices are looked at.
        stream: the model, and the windows to look with.
        work: where the result is kept, and meanwhile features.
        seed: of the sampled labels.
    """

    def __init__(self, plan: Plan, stream: BlockStream, work: WorkFolder, seed: int) -> None:
        self.plan = plan
        self.stream = stream
        self.work = work
        self.seed = seed

    def run(self, on_progress: Callable[[float, str], None] = lambda share, note: None) -> None:
        """Do what is not done yet.

        Args:
            on_progress: told which share of the work is done, and what comes next.
        """
        if (self.work.path / SURVEY_FILE).exists():
            return
        for path in (self.work.path / _FOLDER).glob("*.partial"):
            path.unlink()
        count = len(self.stream.skeleton.blocks)
        first = min(self._units)
        if self._reached(count) is None:
            if not self._features(0).complete:
                self.stream.embed(self._features(0))
            for k in range(count):
                on_progress(k / count / 3, f"looking at block {k}, forwards")
                self._forward(k)
            self._loss(count)
        reached = self._reached(count)
        assert reached is not None
        for k in reversed(range(first, reached)):
            done = (count - k) / (count - first)
            on_progress((1 + 2 * done) / 3, f"looking at block {k}, backwards")
            self._backward(k)
        self._collect()

    def _reached(self, count: int) -> int | None:
        """The block at whose entrance the gradient is known, nearest to the first block."""
        for k in range(count + 1):
            file = self._gradients(k)
            if file.complete:
                if k == count or (self.work.path / self._file("g", k)).exists():
                    return k
                file.path.unlink()  # the run was stopped before it had told what it saw
        return None

    @cached_property
    def _units(self) -> dict[int, list[PlannedTensor]]:
        """Matrices of every block that is not kept as it is."""
        return {unit[0].block: unit for unit in self.plan.units if unit[0].block is not None}

    def _features(self, block: int) -> FeatureFile:
        return self.stream.features(self.work.features_path(block, _FOLDER))

    def _gradients(self, block: int) -> FeatureFile:
        path = self.work.path / _FOLDER / f"gradient-{block:05d}.bin"
        like = self.stream.features(path)
        return FeatureFile(path=path, batches=like.batches, shape=like.shape, dtype=torch.float32)

    def _file(self, kind: str, block: int) -> str:
        return f"{_FOLDER}/{kind}-{block:05d}.safetensors"

    @torch.no_grad()
    def _forward(self, number: int) -> None:
        unit = self._units.get(number, [])
        name = self._file("d", number)
        target = self._features(number + 1)
        if target.complete and (self.work.path / name).exists():
            return
        with self.stream.block(number) as block:
            recorder = InputRecorder(block.module, unit)
            writer = target.writer()
            try:
                inputs = self._features(number)
                for i in range(inputs.batches):
                    writer.append(block(inputs[i]))
            finally:
                groups = recorder.close()
                writer.abandon()
        found: dict[str, Tensor] = {}
        for group in groups:
            seen = group.hessian
            if seen is None or (seen.tokens == 0 and group.prior is None):
                continue
            d = ldl(seen.finish(group.prior)).d.cpu()
            found |= {t.name: d.clone() for t in group.tensors}
        self.work.write_tensors(name, found, {})

    def _loss(self, count: int) -> None:
        """Gradient of the loss at the output of the last block."""
        features, target = self._features(count), self._gradients(count)
        generator = torch.Generator().manual_seed(self.seed)
        writer = target.writer()
        try:
            with self.stream.outside() as outside:
                for i in range(features.batches):
                    x = features[i].float().requires_grad_()
                    hidden = outside.finish(i, x)
                    gradient = _sampled_gradient(hidden.detach(), outside.head, generator)
                    (dx,) = torch.autograd.grad(hidden, x, gradient)
                    writer.append(dx)
        finally:
            writer.abandon()

    def _backward(self, number: int) -> None:
        unit = self._units.get(number, [])
        target = self._gradients(number)
        inputs, outer = self._features(number), self._gradients(number + 1)
        with self.stream.block(number) as block, _watched(block, unit) as moments:
            block.module.float()
            writer = target.writer()
            try:
                for i in range(inputs.batches):
                    x = inputs[i].to(block.device).float().requires_grad_()
                    (dx,) = torch.autograd.grad(block(x), x, outer[i].to(block.device))
                    writer.append(dx)
            finally:
                writer.abandon()
        tokens = inputs.batches * inputs.shape[:-1].numel()
        found = {name: (total / tokens).cpu() for name, total in moments.items()}
        self.work.write_tensors(self._file("g", number), _shared(unit, found), {})
        outer.path.unlink()
        inputs.path.unlink()

    def _collect(self) -> None:
        found: dict[str, Tensor] = {}
        for number in self._units:
            for kind in ("d", "g"):
                read = self.work.read_tensors(self._file(kind, number))
                assert read is not None
                found |= {f"{name}.{kind}": value for name, value in read[0].items()}
        self.work.write_tensors(SURVEY_FILE, found, {})
        for path in (self.work.path / _FOLDER).iterdir():
            path.unlink()


def read_survey(work: WorkFolder, *, by_row: bool) -> dict[str, Sensitivity]:
    """What a survey found: matrices whose inputs and gradients were seen, by name.

    Args:
        work: where it is.
        by_row: tell rows apart; otherwise all have the mean of the matrix.
    """
    read = work.read_tensors(SURVEY_FILE)
    found = {} if read is None else read[0]
    result = {}
    for name in sorted({key.rpartition(".")[0] for key in found}):
        d, g = found.get(f"{name}.d"), found.get(f"{name}.g")
        if d is not None and g is not None:
            result[name] = Sensitivity(d, g if by_row else g.mean().expand(len(g)))
    return result


def row_weights(work: WorkFolder) -> dict[str, Tensor]:
    """Second moments of the gradient at the outputs of matrices, by name."""
    return {name: seen.row_weights for name, seen in read_survey(work, by_row=True).items()}


def _sampled_gradient(
    hidden: Tensor, head: nn.Module | None, generator: torch.Generator
) -> Tensor:
    """Gradient of -log p(y) at what enters the head, y drawn from p itself, for every token.

    Without a head the logits are what is there, one row of them for each image.

    Softmax and cross-entropy together have the gradient p - onehot(y), so the logits of a few
    tokens at a time are enough. What some models do to their logits (scaling, soft caps) is left
    out: it moves all gradients alike, or nearly.
    """
    flat = hidden.flatten(0, -2).float()
    if head is None:
        return _sampled_difference(flat, generator).view(hidden.shape)
    weight = head.get_parameter("weight").float()
    bias = getattr(head, "bias", None)
    out = torch.empty_like(flat)
    step = max(1, _HEAD_ENTRIES // len(weight))
    for start in range(0, len(flat), step):
        x = flat[start : start + step]
        logits = nn.functional.linear(x, weight, None if bias is None else bias.float())
        out[start : start + step] = _sampled_difference(logits, generator) @ weight
    return out.view(hidden.shape)


def _sampled_difference(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient of -log p(y) at the logits, y drawn from p: p - onehot(y)."""
    p = logits.softmax(-1)
    y = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return p.scatter_add_(1, y, torch.full_like(y, -1, dtype=p.dtype))


@contextmanager
def _watched(block: LoadedBlock, unit: list[PlannedTensor]) -> Iterator[dict[str, Tensor]]:
    """Sums over tokens of squared gradients at the outputs of a block's matrices."""
    moments: dict[str, Tensor] = {}
    handles = []
    experts: dict[str, list[PlannedTensor]] = {}

    def collect(tensors: list[PlannedTensor], output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            squares = gradient.detach().flatten(0, -2).square().sum(0)
            for t in tensors:
                start = 0 if t.slot is None else t.slot.start
                moments[t.name] = moments.get(t.name, 0) + squares[start : start + t.m]

        if output.requires_grad:
            output.register_hook(add)

    for tensor in unit:
        if tensor.module is None:
            continue
        if tensor.role:
            experts.setdefault(tensor.module, []).append(tensor)
            continue

        def hook(
            _module: nn.Module, _args: object, output: object, t: PlannedTensor = tensor
        ) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.shape[-1] == t.m:
                collect([t], first)

        handles.append(block.module.get_submodule(tensor.module).register_forward_hook(hook))
    for path, members in experts.items():
        module = block.module.get_submodule(path)

        def watch(
            projection: str, e: int, output: Tensor, members: list[PlannedTensor] = members
        ) -> None:
            down = projection == "down_proj"
            collect(
                [
                    t
                    for t in members
                    if t.slot and t.slot.expert == e and (t.role == "down") == down
                ],
                output,
            )

        setattr(module, WATCHER, watch)
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
        for path in experts:
            delattr(block.module.get_submodule(path), WATCHER)


def _shared(unit: list[PlannedTensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts draw on one another: one that no token reached is not worth nothing."""
    layers: dict[tuple[str | None, str], list[PlannedTensor]] = {}
    for t in unit:
        if t.role:
            layers.setdefault((t.module, t.role), []).append(t)
    result = dict(found)
    for tensors in layers.values():
        seen = [found[t.name] for t in tensors if t.name in found]
        if not seen:
            continue
        mean = sum(seen) / len(tensors)
        for t in tensors:
            result[t.name] = found.get(t.name, torch.zeros(t.m)) + _SHARED * mean
    return result
