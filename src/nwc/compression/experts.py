"""Mixtures of experts: where their matrices lie, and how they are run so that inputs are seen.

transformers keeps the experts of a block in two parameters, `gate_up_proj` [E, 2 I, H] and
`down_proj` [E, H, I] (transposed and interleaved in GPT-OSS), and runs them by a function chosen
by name. The one registered here runs one expert after the other and shows each its own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nwc.compression.slots import Slot

EXPERTS_FUNCTION = "nwc"

OBSERVER = "nwc_observer"
"""Attribute of an experts module: called with (projection, expert, its inputs [tokens, n])."""

WATCHER = "nwc_watcher"
"""The same for outputs: called with (projection, expert, what it gives [tokens, m])."""

_ON_DISK = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Names of one expert's gate, up and down: Qwen, DeepSeek and most others; Mixtral."""


def expert_slots(name: str, inner: str, parameter: Tensor) -> Iterator[dict[str, Slot]]:
    """Candidates for how a fused parameter is spread over tensors of a checkpoint.

    Args:
        name: the parameter as the checkpoint would spell it.
        inner: its path in its block.
        parameter: [experts, rows, columns].
    """
    owner, _, leaf = name.rpartition(".")
    if parameter.dim() != 3:
        return
    half = parameter.shape[1] // 2
    for gate, up, down in _ON_DISK:
        slots = {}
        for e in range(len(parameter)):
            if leaf == "gate_up_proj":
                first = Slot(parameter=inner, expert=e, rows=half)
                slots[f"{owner}.{e}.{gate}.weight"] = first
                slots[f"{owner}.{e}.{up}.weight"] = Slot(parameter=inner, expert=e, start=half)
            else:
                disk = {"down_proj": down, "up_proj": up}.get(leaf, leaf)
                slots[f"{owner}.{e}.{disk}.weight"] = Slot(parameter=inner, expert=e)
        yield slots


def role(key: str, leaf: str) -> str:
    """Which group of App. A.5 an expert's matrix belongs to: gate, up, gate_up or down.

    Args:
        key: its name in the checkpoint.
        leaf: last part of the parameter's name.

    Example:
        >>> role("model.layers.0.block_sparse_moe.experts.3.w3.weight", "gate_up_proj")
        'up'
        >>> role("model.layers.0.mlp.experts.gate_up_proj", "gate_up_proj")
        'gate_up'
    """
    names = key.split(".")
    for gate, up, down in _ON_DISK:
        for name, which in ((gate, "gate"), (up, "up"), (down, "down")):
            if name in names[-2:]:
                return which
    return leaf.removesuffix("_proj")


def is_transposed(experts: nn.Module) -> bool:
    """Whether the experts' parameters hold [inputs, outputs]."""
    return bool(getattr(experts, "is_transposed", False))


def use_experts_function(model: Any) -> None:  # noqa: ANN401  (PreTrainedModel)
    """Have a model run its experts by `run_experts`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_FUNCTION, run_experts)
    try:
        model.set_experts_implementation(EXPERTS_FUNCTION)
    except ValueError:  # transformers 5.0 lets nobody but itself choose one that is registered
        model.config._experts_implementation = EXPERTS_FUNCTION


def run_experts(
    experts: Any,  # noqa: ANN401  (a module with attributes that nn.Module does not declare)
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Apply every expert to the tokens that are routed to it.

    Args:
        experts: module with fused parameters, as `use_experts_implementation` makes them.
        hidden_states: [tokens, H].
        top_k_index: experts of every token, [tokens, k].
        top_k_weights: their weights, [tokens, k].
    """
    observe: Callable[[str, int, Tensor], None] = getattr(experts, OBSERVER, lambda *_: None)
    gated = getattr(experts, "has_gate", True)
    watch: Callable[[str, int, Tensor], None] = getattr(experts, WATCHER, lambda *_: None)
    first = "gate_up_proj" if gated else "up_proj"
    output = torch.zeros_like(hidden_states)
    for e in top_k_index.unique().tolist():
        if e >= experts.num_experts:  # a place that expert parallelism left empty
            continue
        token, k = torch.where(top_k_index == e)
        x = hidden_states[token]
        observe(first, e, x)
        inner = _linear(experts, first, e, x)
        watch(first, e, inner)
        inner = experts._apply_gate(inner) if gated else experts.act_fn(inner)
        observe("down_proj", e, inner)
        result = _linear(experts, "down_proj", e, inner)
        watch("down_proj", e, result)
        if getattr(experts, "has_post_expert_norm", False):
            result = experts.post_expert_norm(result)
        weighted = result * top_k_weights[token, k, None]
        output = output.index_add(0, token, weighted.to(output.dtype))
    return output


def _linear(experts: nn.Module, name: str, e: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[e]
    y = x @ weight if is_transposed(experts) else nn.functional.linear(x, weight)
    bias = getattr(experts, f"{name}_bias", None)
    return y if bias is None else y + bias[e]
