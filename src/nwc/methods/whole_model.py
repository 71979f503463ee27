"""What methods that look at the whole model find out before they quantise it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nwc.calibration.hessian import HessianAccumulator
from nwc.errors import CalibrationError
from nwc.methods.dense import Matrix

_BATCH_TOKENS = 2048


@torch.no_grad()
def hessians(
    model: nn.Module,
    matrices: Iterable[Matrix],
    windows: Tensor,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Tensor]:
    """Hessians of the inputs of all matrices at once, about as large as the model itself.

    Args:
        model: a causal language model.
        matrices: whose inputs are looked at; those of fused experts are left out, for no module
            sees an expert's inputs alone.
        windows: tokens [windows, context].
        on_progress: told which share of the work is done.

    Returns:
        By name of the matrix; matrices that share their input share a tensor.
    """
    found: dict[str, HessianAccumulator] = {}
    last: list[Any] = [None, None]  # an input, held so that no other takes its place; its sum

    def hook(name: str, n: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def look(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(named.values()))
            if x is not last[0]:
                last[:] = x, found.get(name) or HessianAccumulator(n, name)
                last[1].add(x)
            found[name] = last[1]

        return look

    with ExitStack() as stack:
        for matrix in matrices:
            parameter = model.get_parameter(matrix.parameter)
            path, _, leaf = matrix.parameter.rpartition(".")
            # Of modules that hold a bare matrix nothing tells that they apply it to their input.
            if parameter.dim() == 2 and leaf == "weight":
                look = hook(matrix.name, matrix.view(parameter).shape[1])
                owner = model.get_submodule(path)
                handle = owner.register_forward_pre_hook(look, with_kwargs=True)
                stack.callback(handle.remove)
        batches = windows.split(max(1, _BATCH_TOKENS // windows.shape[1]))
        for i, batch in enumerate(batches, start=1):
            model(input_ids=batch, use_cache=False)
            on_progress(i / len(batches))
    return {name: accumulator.finish() for name, accumulator in found.items()}


def pieces(windows: Tensor, length: int) -> Tensor:
    """Windows cut into shorter ones; what is left over at their ends is dropped.

    Raises:
        CalibrationError: fewer than two come of it.

    Example:
        >>> pieces(torch.arange(10).view(2, 5), 2).tolist()
        [[0, 1], [2, 3], [5, 6], [7, 8]]
    """
    length = min(length, windows.shape[1])
    whole = windows.shape[1] // length * length
    found = windows[:, :whole].reshape(-1, length)
    if len(found) < 2:
        raise CalibrationError(
            f"{windows.numel()} tokens make {len(found)} window of {length}, of which none can be "
            "held out; use longer text or a shorter --context"
        )
    return found


def weights(model: nn.Module, matrices: Sequence[Matrix]) -> dict[str, Tensor]:
    """W [m, n] of all matrices, in the model's memory."""
    return {x.name: x.view(model.get_parameter(x.parameter).data) for x in matrices}
