"""Sees the inputs of a block's layers: which layers share one, and its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nwc.calibration.hessian import HessianAccumulator
from nwc.compression.experts import OBSERVER
from nwc.compression.plan import PlannedTensor


@dataclass(kw_only=True)
class Group:
    """Layers of a block that share their input.

    Args:
        tensors: the layers, in the order in which the model applies them.
        hessian: of their input; None for weights that no module applies.
        prior: mean Hessian of all experts of the layer, for one that sees few tokens.
    """

    tensors: list[PlannedTensor]
    hessian: HessianAccumulator | None
    prior: Tensor | None = None


class InputRecorder:
    """Hooks on a block that runs.

    Args:
        block: the block.
        members: its matrices.
    """

    def __init__(self, block: nn.Module, members: list[PlannedTensor]) -> None:
        self._groups: list[Group] = []
        self._of: dict[str, Group] = {}
        self._members = members
        self._last: tuple[Tensor, HessianAccumulator] | None = None
        self._handles = []
        self._experts: dict[str, nn.Module] = {}
        for tensor in members:
            if tensor.module is None:
                continue
            module = block.get_submodule(tensor.module)
            if tensor.role:
                self._experts[tensor.module] = module
            else:
                hook = module.register_forward_pre_hook(self._hook(tensor))
                self._handles.append(hook)
        for path, module in self._experts.items():
            setattr(module, OBSERVER, self._observer(path))

    def _hook(self, tensor: PlannedTensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            group = self._of.get(tensor.name)
            if group is None:
                if x.shape[-1] != tensor.n:
                    return  # the module does something else with its weight
                group = self._join(tensor, x)
            assert group.hessian is not None
            if group.tensors[0] is tensor:
                group.hessian.add(x)
                self._last = (x, group.hessian)

        return hook

    def _join(self, tensor: PlannedTensor, x: Tensor) -> Group:
        """The group of layers that take x, which may be a new one."""
        if self._last is not None and self._last[0] is x:
            group = next(g for g in self._groups if g.hessian is self._last[1])
            group.tensors.append(tensor)
        else:
            group = Group(tensors=[tensor], hessian=HessianAccumulator(tensor.n, tensor.name))
            self._groups.append(group)
        self._of[tensor.name] = group
        return group

    def _observer(self, path: str) -> Callable[[str, int, Tensor], None]:
        """What an experts module calls with the inputs of its projections."""
        groups: dict[tuple[bool, int], Group] = {}
        for tensor in self._members:
            if tensor.module != path or not tensor.role or tensor.slot is None:
                continue
            assert tensor.slot.expert is not None
            place = (tensor.role == "down", tensor.slot.expert)
            if place not in groups:
                hessian = HessianAccumulator(tensor.n, tensor.name)
                groups[place] = Group(tensors=[], hessian=hessian)
            groups[place].tensors.append(tensor)
            self._of[tensor.name] = groups[place]
        self._groups += groups.values()

        def observe(projection: str, expert: int, x: Tensor) -> None:
            group = groups.get((projection == "down_proj", expert))
            if group is not None:
                assert group.hessian is not None
                group.hessian.add(x)

        return observe

    def close(self) -> list[Group]:
        """Remove the hooks; the groups in order of their first use, those without inputs last."""
        for handle in self._handles:
            handle.remove()
        self._last = None
        for path, module in self._experts.items():
            delattr(module, OBSERVER)
            for down in (False, True):
                self._share([
                    g for g in self._groups
                    if g.tensors[0].module == path
                    and g.tensors[0].role
                    and (g.tensors[0].role == "down") == down
                ])  # fmt: skip
        # Weights that no module applied have no inputs: they are quantised without feedback.
        unseen = [t for t in self._members if t.name not in self._of]
        return self._groups + [Group(tensors=[t], hessian=None) for t in unseen]

    def _share(self, experts: list[Group]) -> None:
        """Give experts that saw fewer tokens than they have inputs the mean of all."""
        seen = [g.hessian for g in experts if g.hessian is not None and g.hessian.tokens]
        starved = [
            g
            for g in experts
            if g.tensors[0].role and g.hessian and g.hessian.tokens < g.hessian.n
        ]
        if not starved or not seen:
            return
        prior = torch.zeros(seen[0].n, seen[0].n)
        for hessian in seen:
            hessian.add_to(prior)
        prior /= sum(hessian.tokens for hessian in seen)
        for group in starved:
            group.prior = prior
