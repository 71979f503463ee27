"""Calibration pass: the original model, one block in memory at a time.

The inputs of every block are the uncompressed model's features (paper Sec. 3.3), so a block's
Hessians do not depend on how the blocks before it were compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nwc.calibration.hessian import HessianAccumulator
from nwc.compression.features import FeatureFile
from nwc.compression.plan import PlannedTensor, Skeleton
from nwc.compression.source import SourceCheckpoint
from nwc.errors import FormatError

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers of a block that share their input.

    Args:
        tensors: the layers, in the order in which the model applies them.
        hessian: of their input; None for weights that no module applies.
    """

    tensors: list[PlannedTensor]
    hessian: HessianAccumulator | None


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a block, after its features."""


class _FirstBlockReached(Exception):  # noqa: N818  (control flow, never seen outside)
    pass


class BlockStream:
    """Iterates over blocks, with the Hessians of their layers.

    Args:
        source: the checkpoint.
        skeleton: its model without weights.
        windows: calibration tokens.
        batch_tokens: how many tokens go through a block at once.
    """

    def __init__(
        self,
        source: SourceCheckpoint,
        skeleton: Skeleton,
        windows: Int[Tensor, "windows context"],
        batch_tokens: int = 2048,
    ) -> None:
        self.source = source
        self.skeleton = skeleton
        self._paths = {module: path for path, module in skeleton.model.named_modules()}
        size = max(1, batch_tokens // windows.shape[1])
        while len(windows) % size:  # equal batches: one set of block arguments serves them all
            size -= 1
        self._batches = list(windows.split(size))

    @torch.no_grad()
    def groups(
        self, tensors: list[PlannedTensor], on_batch: Callable[[], None] = lambda: None
    ) -> Iterator[list[Group]]:
        """The groups of every block in turn; a block is unloaded before the next is loaded.

        Args:
            tensors: what is compressed, in the order of the blocks.
            on_batch: called after every batch of every block.
        """
        with FeatureFile() as features:
            self._load(self.skeleton.blocks[0])
            arguments = self._first_inputs(features)
            for number, block in enumerate(self.skeleton.blocks):
                if number:
                    self._load(block)
                recorder = _InputRecorder(block, [t for t in tensors if t.block == number])
                rest, named = arguments[number]
                for i in range(len(features)):
                    output = block(features[i], *rest, **named)
                    features[i] = output[0] if isinstance(output, tuple) else output
                    on_batch()
                groups = recorder.close()
                _unload(block)
                yield groups

    @property
    def batches(self) -> int:
        """Batches that go through every block."""
        return len(self._batches)

    def _first_inputs(self, inputs: FeatureFile) -> list[_Arguments]:
        """Every block's other arguments; what the first block receives goes into `inputs`."""
        model, blocks = self.skeleton.model, self.skeleton.blocks
        outside = [m for name, m in model.named_modules() if not self._in_blocks(name)]
        head = getattr(model, "get_output_embeddings", lambda: None)()
        for module in outside:
            if module is not head:
                self._load(module, recurse=False)
        arguments: list[_Arguments] = [((), {}) for _ in blocks]
        handles = []

        for number, block in enumerate(blocks):

            def record(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], k: int = number
            ) -> None:
                given = dict(kwargs)
                features = args[0] if args else given.pop("hidden_states")
                if k == 0:
                    inputs.append(features)
                given = {n: v for n, v in given.items() if not n.startswith("past_key")}
                arguments[k] = (args[1:], given)
                if len(inputs) > 1:
                    raise _FirstBlockReached

            handles.append(block.register_forward_pre_hook(record, with_kwargs=True))
        # The first batch passes every block, to see its arguments; block 0 computes, the others
        # hand its output on. The remaining batches stop at block 0.
        kind: list[type] = []
        first = blocks[0].forward
        for block in list(blocks)[1:]:
            block.forward = _passing(kind)
        blocks[0].forward = _observed(first, kind)
        body = getattr(model, "base_model", model)
        try:
            for batch in self._batches:
                with suppress(_FirstBlockReached):
                    body(input_ids=batch, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
            for block in blocks:
                del block.forward  # back to the class's method
        for module in outside:
            _unload(module, recurse=False)
        return arguments

    def _in_blocks(self, name: str) -> bool:
        path = self.skeleton.blocks_path
        return name == path or name.startswith(path + ".")

    def _load(self, module: nn.Module, recurse: bool = True) -> None:
        """Give the module its weights."""
        wanted = {}
        for owner in module.modules() if recurse else [module]:
            for leaf, parameter in owner.named_parameters(recurse=False):
                if parameter.is_meta:
                    wanted[owner, leaf] = self.skeleton.keys[f"{self._paths[owner]}.{leaf}"]
        loaded = dict(self.source.tensors(sorted(set(wanted.values()))))
        for (owner, leaf), key in wanted.items():
            value = loaded[key]
            if not torch.isfinite(value).all():
                raise FormatError(
                    f"{key} has NaN or infinite weights, so nothing can be calibrated; "
                    "repair the checkpoint"
                )
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))


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


class _InputRecorder:
    """Hooks that find out which layers share an input, and accumulate its Hessian once."""

    def __init__(self, block: nn.Module, members: list[PlannedTensor]) -> None:
        self._unseen = {t.key: t for t in members}
        self._groups: list[Group] = []
        self._of: dict[str, Group] = {}
        self._last: tuple[Tensor, HessianAccumulator] | None = None
        self._handles = [
            block.get_submodule(t.module).register_forward_pre_hook(self._hook(t))
            for t in members
            if t.module is not None
        ]

    def _hook(self, tensor: PlannedTensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            shared = self._last is not None and self._last[0] is x
            group = self._of.get(tensor.key)
            if group is None:
                del self._unseen[tensor.key]
                if shared:
                    assert self._last is not None
                    group = next(g for g in self._groups if g.hessian is self._last[1])
                    group.tensors.append(tensor)
                else:
                    group = Group(
                        tensors=[tensor], hessian=HessianAccumulator(tensor.n, tensor.key)
                    )
                    self._groups.append(group)
                self._of[tensor.key] = group
            assert group.hessian is not None
            if group.tensors[0] is tensor:
                group.hessian.add(x)
                self._last = (x, group.hessian)

        return hook

    def close(self) -> list[Group]:
        for handle in self._handles:
            handle.remove()
        self._last = None
        # Weights that no module applied have no inputs: they are quantised without feedback.
        rest = [Group(tensors=[t], hessian=None) for t in self._unseen.values()]
        return self._groups + rest
