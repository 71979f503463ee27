"""The model on its way through memory: one block loaded at a time, features on disk between them.

The inputs of every block are the uncompressed model's features (paper Sec. 3.3), so blocks do not
depend on how those before them were compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nwc.compression.features import FeatureFile
from nwc.compression.skeleton import Skeleton
from nwc.compression.source import SourceCheckpoint, require_finite
from nwc.compression.towers import within

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_BATCHES_AT_LEAST = 16
"""Some of the batches are held out by recovery fine-tuning; a few must be left to learn from."""

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a block, after its features."""


class _FirstBlockReached(Exception):  # noqa: N818  (control flow, never seen outside)
    pass


class LoadedBlock:
    """A decoder block with its weights.

    Args:
        module: the block.
        arguments: what it takes beside features.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, arguments: _Arguments, device: str) -> None:
        self.module = module.to(device)
        self.device = device
        self._arguments = arguments

    def __call__(self, features: Tensor) -> Tensor:
        """Output for a batch, in the arithmetic of the block's parameters."""
        dtype = next(self.module.parameters()).dtype

        def fit(value: Any) -> Any:  # noqa: ANN401  (a leaf of the arguments, of any type)
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, dtype if value.is_floating_point() else None)

        rest, named = tree_map(fit, self._arguments)
        output = self.module(features.to(self.device, dtype), *rest, **named)
        return output[0] if isinstance(output, tuple) else output


class Outside:
    """What follows the blocks of a model.

    Args:
        stream: of the model.
        head: what gives logits of the next token; None for a classifier of images, whose body
            gives the logits of classes.
    """

    def __init__(self, stream: BlockStream, head: nn.Module | None) -> None:
        self._stream = stream
        self.head = head

    def finish(self, i: int, features: Tensor) -> Tensor:
        """What enters the head when these features leave the last block, for batch i.

        Without a head: the logits.
        """
        return self._stream._finish(i, features)


class BlockStream:
    """Gives the blocks of a model in turn, and the features that enter the first.

    Args:
        source: the checkpoint.
        skeleton: its model without weights.
        windows: calibration tokens, or images as the model takes them.
        batch_tokens: how many tokens go through a block at once, at most.
        device: where blocks run.
    """

    def __init__(
        self,
        source: SourceCheckpoint,
        skeleton: Skeleton,
        windows: Int[Tensor, "windows context"] | Float[Tensor, "windows channels height width"],
        batch_tokens: int = 2048,
        device: str = "cpu",
    ) -> None:
        self.source = source
        self.skeleton = skeleton
        self.device = device
        self._paths = {module: path for path, module in skeleton.model.named_modules()}
        length = skeleton.window_tokens(windows)
        size = max(1, min(batch_tokens // length, len(windows) // _BATCHES_AT_LEAST))
        while len(windows) % size:  # equal batches: one set of block arguments serves them all
            size -= 1
        self._batches = list(windows.split(size))
        self._kind: list[type] = []

    @property
    def batches(self) -> int:
        """Batches that go through every block."""
        return len(self._batches)

    def features(self, path: Path) -> FeatureFile:
        """The file of all batches of features at some place between two blocks."""
        first = self._first_batch[0]
        return FeatureFile(path=path, batches=self.batches, shape=first.shape, dtype=first.dtype)

    @torch.no_grad()
    def embed(self, target: FeatureFile) -> None:
        """Write what the first block receives."""
        writer = target.writer()
        with self._outside_loaded():
            for batch in self._batches:
                writer.append(self._first_features(batch))

    @contextmanager
    def outside(self) -> Iterator[Outside]:
        """What follows the blocks, with its weights; unloaded afterwards."""
        head = self._head
        self._first_batch  # noqa: B018  (shows whether blocks return tuples)
        try:
            with self._outside_loaded():
                if head is not None:
                    self._load(head)
                yield Outside(self, head)
        finally:
            if head is not None:
                _unload(head)

    def _finish(self, i: int, features: Tensor) -> Tensor:
        """What the model's body makes of features that leave the last block, for batch i."""
        blocks = list(self.skeleton.blocks)

        def first(*_args: Any, **_kwargs: Any) -> Any:  # noqa: ANN401
            entering = features.to(self._first_batch[0].dtype)
            return (entering,) if self._kind[0] is tuple else entering

        for block in blocks:
            block.forward = _passing(self._kind)
        blocks[0].forward = first
        try:
            output = self.skeleton.run_body(self._batches[i])
        finally:
            for block in blocks:
                del block.forward
        hidden: Tensor = output.logits if self.skeleton.classifies else output[0]
        return hidden

    @contextmanager
    def block(self, number: int) -> Iterator[LoadedBlock]:
        """A block with its weights, in the checkpoint's dtype; unloaded afterwards."""
        module = self.skeleton.blocks[number]
        arguments = self._first_batch[1][number]
        self._load(module)
        try:
            yield LoadedBlock(module, arguments, self.device)
        finally:
            _unload(module)

    @cached_property
    def _first_batch(self) -> tuple[Tensor, list[_Arguments]]:
        """Features that enter the first block, and every block's other arguments.

        The first block computes, which shows whether blocks return a tensor or a tuple; the
        others hand its output on.
        """
        blocks = list(self.skeleton.blocks)
        entered: list[Tensor] = []
        arguments: list[_Arguments] = [((), {}) for _ in blocks]
        kind = self._kind

        def see(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(kwargs)
            features = args[0] if args else given.pop("hidden_states")
            if number == 0:
                entered.append(features)
            given = {n: v for n, v in given.items() if not n.startswith("past_key")}
            arguments[number] = (args[1:], given)

        self._load(blocks[0])
        blocks[0].forward = _observed(blocks[0].forward, kind)
        for block in blocks[1:]:
            block.forward = _passing(kind)
        try:
            with self._outside_loaded(), torch.no_grad():
                self._enter(self._batches[0], see)
        finally:
            for block in blocks:
                del block.forward  # back to the class's method
            _unload(blocks[0])
        return entered[0], arguments

    def _first_features(self, batch: Tensor) -> Tensor:
        entered: list[Tensor] = []

        def see(_number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])
            raise _FirstBlockReached

        with suppress(_FirstBlockReached):
            self._enter(batch, see)
        return entered[0]

    def _enter(
        self, batch: Tensor, see: Callable[[int, tuple[Any, ...], dict[str, Any]], None]
    ) -> None:
        """Send a batch through the model; `see` is shown what every block is called with."""
        handles = []
        for number, block in enumerate(self.skeleton.blocks):

            def hook(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], k: int = number
            ) -> None:
                see(k, args, kwargs)

            handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            self.skeleton.run_body(batch)
        finally:
            for handle in handles:
                handle.remove()

    @property
    def _head(self) -> nn.Module | None:
        """The output head of a language model, which the body is run without."""
        if self.skeleton.takes_images:
            return None
        return getattr(self.skeleton.model, "get_output_embeddings", lambda: None)()

    @contextmanager
    def _outside_loaded(self) -> Iterator[None]:
        """Everything of the body but its blocks has its weights inside."""
        skeleton, head = self.skeleton, self._head
        outside = [
            module
            for name, module in skeleton.model.named_modules()
            if within(name, skeleton.body_path)
            and not within(name, skeleton.blocks_path)
            and module is not head
        ]
        try:
            for module in outside:
                self._load(module, recurse=False)
            yield
        finally:
            for module in outside:
                _unload(module, recurse=False)

    def _load(self, module: nn.Module, recurse: bool = True) -> None:
        """Give the module its weights."""
        skeleton = self.skeleton
        for owner in module.modules() if recurse else [module]:
            for leaf, parameter in list(owner.named_parameters(recurse=False)):
                if not parameter.is_meta:
                    continue
                name = f"{self._paths[owner]}.{leaf}".removeprefix(".")
                if name in skeleton.keys:
                    value = self.source.tensor(skeleton.keys[name])
                else:
                    value = self._fused(name, parameter)
                require_finite(skeleton.keys.get(name, name), value)
                setattr(owner, leaf, nn.Parameter(value, requires_grad=False))

    def _fused(self, name: str, parameter: Tensor) -> Tensor:
        parts = self.skeleton.fused[name]
        value = None
        for key, tensor in self.source.tensors(list(parts)):
            if value is None:
                value = torch.empty(parameter.shape, dtype=tensor.dtype)
            parts[key].view(value).copy_(tensor)
        assert value is not None
        return value


def _passing(kind: list[type]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        features = args[0] if args else kwargs["hidden_states"]
        return (features,) if kind and kind[0] is tuple else features

    return forward


def _observed(forward: Callable[..., Any], kind: list[type]) -> Callable[..., Any]:
    def observed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        output = forward(*args, **kwargs)
        kind[:] = [tuple if isinstance(output, tuple) else Tensor]
        return output

    return observed


def _unload(module: nn.Module, recurse: bool = True) -> None:
    for owner in module.modules() if recurse else [module]:
        for leaf, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, leaf, nn.Parameter(parameter.to("meta"), requires_grad=False))
