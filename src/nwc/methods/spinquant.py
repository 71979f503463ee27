r"""SpinQuant: learned rotations, then GPTQ (Liu et al., ICLR 2025).

RMS norms commute with rotations once their weights are folded into the matrices behind them, so
that an orthogonal R1 of the residual stream changes nothing that the model computes: matrices that
read the stream become :math:`W R_1`, matrices that write it :math:`R_1^T W`. Within every layer an
orthogonal R2 of the size of a head turns values, and the output matrix turns them back (Sec. 3.1,
Fig. 1). What changes is how well the matrices can be rounded.

Both start as random Hadamard matrices and are learned by Cayley SGD (`numerics.stiefel`; Sec.
3.2): the loss is the cross-entropy of the model with its matrices rounded to nearest, gradients
pass through the rounding as if it were not there. Without calibration they stay as they start,
which is QuaRot (Ashkboos et al., 2024). R3 and R4, which rotate activations while the model runs,
are for quantised activations and left out: nothing here adds work at inference, or bits.
Embeddings and head are no longer one; what that takes shows in the bits of the whole folder.

Taken are models of Llama's parts. The rotated model has to give the logits of the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nwc.errors import ConfigError
from nwc.methods.dense import Prepared
from nwc.methods.gptq import GPTQ
from nwc.methods.rtn import round_in_groups
from nwc.numerics.hadamard import mix
from nwc.numerics.stiefel import CayleySGD

_STEPS = 100
_RATE = 0.27
"""First step size; it falls to 0 along a line. The paper's 1.5 (Sec. 4.1) goes with steps of
8 x 2048 tokens; ours have 512, their gradients more noise by the square root of 32, and are
shorter by as much. As in the authors' runs there is no momentum."""

_TOKENS = 512
"""Tokens of a step, at most."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_OTHERS = ("q_norm.weight", "k_norm.weight")
_CLOSE = 1e-3


class Rotations(NamedTuple):
    """What is learned.

    Args:
        R1: [width, width], of the residual stream.
        R2: [head, head], of the values of every layer.
    """

    R1: Tensor
    R2: list[Tensor]


class SpinQuant(GPTQ):
    """See the module; `settings` are those of GPTQ."""

    name = "spinquant"

    def prepare(
        self,
        model: nn.Module,
        windows: Tensor | None,
        on_progress: Callable[[float, str], None] = lambda share, note: None,
    ) -> Prepared:
        """See `DenseMethod.prepare`.

        Raises:
            ConfigError: the model is not made of Llama's parts.
        """
        folded = fold_norms(model)
        rotations = first_rotations(model, self.seed)
        if windows is not None:
            learn(model, folded, rotations, windows, self.setting.bits, on_progress)
        with torch.no_grad():
            found = rotate(model, folded, rotations)
            tokens = torch.arange(8)[None] % folded[_EMBEDDING].shape[0]
            before = model(tokens).logits
            after = functional_call(model, found, (tokens,), tie_weights=False).logits
        if not (after - before).norm() <= _CLOSE * before.norm():
            raise ConfigError(
                f"rotated, {type(model).__name__} computes something else: it has the names of "
                "Llama's parts but not their meaning; take another method"
            )
        return Prepared(found, {"tie_word_embeddings": False})


def fold_norms(model: nn.Module) -> dict[str, Tensor]:
    """Parameters after the weights of norms are folded into what reads them; norms become 1.

    Raises:
        ConfigError: a part is missing, or there is one that Llama lacks.
    """
    named = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}
    wanted, folds = [_EMBEDDING, _HEAD, _NORM], {_HEAD: _NORM}
    config: Any = model.config
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        names = {
            "input_layernorm": [f"self_attn.{x}" for x in _ATTENTION],
            "post_attention_layernorm": [f"mlp.{x}" for x in _MLP],
        }
        for norm, readers in names.items():
            wanted.append(f"{prefix}{norm}.weight")
            for reader in readers:
                wanted.append(f"{prefix}{reader}.weight")
                if not reader.endswith(("o_proj", "down_proj")):
                    folds[f"{prefix}{reader}.weight"] = f"{prefix}{norm}.weight"
    missing = [name for name in wanted if name not in named]
    known = {*wanted, *(name.removesuffix("weight") + "bias" for name in wanted)}
    extra = [name for name in named if name not in known and not name.endswith(_OTHERS)]
    if missing or extra:
        what = f"has no {missing[0]}" if missing else f"also has {extra[0]}"
        raise ConfigError(
            f"method spinquant rotates models of Llama's parts; {type(model).__name__} {what}; "
            "take another method"
        )
    folded = {name: W * named[folds[name]] if name in folds else W for name, W in named.items()}
    return folded | {norm: torch.ones_like(named[norm]) for norm in folds.values()}


def first_rotations(model: nn.Module, seed: int) -> Rotations:
    """Random Hadamard matrices."""
    config: Any = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = range(1, config.num_hidden_layers + 1)
    place = config.num_hidden_layers + 1
    return Rotations(
        mix(torch.eye(config.hidden_size), place * seed),
        [mix(torch.eye(head), place * seed + layer) for layer in layers],
    )


def rotate(
    model: nn.Module,
    folded: dict[str, Tensor],
    rotations: Rotations,
    rounded: Callable[[Tensor], Tensor] = lambda W: W,
) -> dict[str, Tensor]:
    """Parameters of the rotated model.

    Args:
        model: whose configuration says how many layers there are.
        folded: of `fold_norms`.
        rotations: orthogonal.
        rounded: what becomes of the matrices of layers.
    """
    R1 = rotations.R1
    found = dict(folded)
    for name in (_EMBEDDING, _HEAD):
        found[name] = folded[name] @ R1
    for layer, R2 in enumerate(rotations.R2):
        prefix = f"model.layers.{layer}."
        for name in [f"self_attn.{x}" for x in _ATTENTION] + [f"mlp.{x}" for x in _MLP]:
            W, bias = folded[f"{prefix}{name}.weight"], folded.get(f"{prefix}{name}.bias")
            if name.endswith("v_proj"):
                W = (R2.T @ W.unflatten(0, (-1, len(R2)))).flatten(0, 1)
                bias = None if bias is None else (bias.unflatten(0, (-1, len(R2))) @ R2).flatten()
            if name.endswith("o_proj"):
                W = (W.unflatten(1, (-1, len(R2))) @ R2).flatten(1)
            if name.endswith(("o_proj", "down_proj")):
                W, bias = R1.T @ W, None if bias is None else bias @ R1
            else:
                W = W @ R1
            found[f"{prefix}{name}.weight"] = rounded(W)
            if bias is not None:
                found[f"{prefix}{name}.bias"] = bias
    return found


def learn(
    model: nn.Module,
    folded: dict[str, Tensor],
    rotations: Rotations,
    windows: Tensor,
    bits: int,
    on_progress: Callable[[float, str], None] = lambda share, note: None,
    steps: int = _STEPS,
) -> list[float]:
    """Change rotations so that the rounded model predicts calibration tokens better.

    Args:
        model: what computes.
        folded: of `fold_norms`.
        rotations: changed in place.
        windows: tokens [windows, context]; every step takes one, in order.
        bits: that the matrices are rounded to.
        on_progress: told which share of the work is done, and the loss.
        steps: of Cayley SGD.

    Returns:
        The loss of every step, nats per token, before it is taken.
    """
    matrices = [rotations.R1, *rotations.R2]
    descent = CayleySGD(matrices, momentum=0.0)
    losses = []
    for step in range(steps):
        tokens = windows[step % len(windows), :_TOKENS].long()[None]
        for R in matrices:
            R.requires_grad_(True)
        parameters = rotate(model, folded, rotations, lambda W: _rounded(W, bits))
        logits = functional_call(model, parameters, (tokens,), tie_weights=False).logits
        loss = nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])
        gradients = torch.autograd.grad(loss, matrices)
        for R in matrices:
            R.requires_grad_(False)
        descent.step(list(gradients), _RATE * (1 - step / steps))
        losses.append(float(loss.detach()))
        on_progress((step + 1) / steps, f"rotations, loss {losses[-1]:.3f}")
    return losses


def _rounded(W: Tensor, bits: int) -> Tensor:
    """Rounded to nearest; gradients pass as if it were not."""
    return W + (round_in_groups(W.detach(), bits) - W.detach())
