r"""BitDistiller: clip asymmetrically, then train towards the original, mode- or mean-seeking.

Du, Zhang, Cao, Guo, Cao, Chu, Xu, 2024 (arXiv:2402.10631). Groups of 128 neighbours in a row share
a grid: with 2 bits uniform with a zero point, with more the quantiles of a normal distribution
(NormalFloat), positive and negative weights scaled apart (Sec. 3.1). First each group is clipped
(Eq. 2): the ends of its range, each shrunk by a factor of its own out of 1, 0.95 ... 0.55, such
that

.. math:: \mathrm{tr}((w - \hat w) H_{gg} (w - \hat w)^T)

is least, H_gg the Hessian of the group's inputs. The clipped weights are trained straight through
(see `qat`) with

.. math:: \gamma \, \mathrm{KL}(\hat p \,\|\, p) + (1 - \gamma) \, \mathrm{KL}(p \,\|\, \hat p)

where gamma, the mean probability that the original p gives to the tokens of the text, says how
confident it is (Eq. 6). Scales take FP16, zero points as many bits as a code.

The paper trains on some 10 K texts that mix instructions with the original's answers; here on the
calibration text, cut to windows of at most 256 tokens, 64 steps of 1,024 tokens with a rate
relative to the size of the weights: a few minutes on a core for 8 M parameters. Its code leaves
queries and keys unclipped, its paper does not say so: here all matrices are clipped. It stops at 3
bits; 4 bits are the NormalFloat with 16 values (Dettmers et al., 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from nwc.coding.rate import BitBudget
from nwc.errors import CalibrationError
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Prepared, Quantised, Setting, grouped_budget
from nwc.methods.qat import Schedule, forward_kl, reverse_kl, train_rounded
from nwc.methods.rtn import GROUP, Grid
from nwc.methods.whole_model import hessians, pieces, weights

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from nwc.methods.qat import Logits

_SHRINK = tuple(1 - i / 20 for i in range(10))
_UNIFORM = 2
"""Bits up to which the grid is uniform."""


def _side_bits(bits: int) -> tuple[int, int]:
    """Bits of a group's scales and of its zero point."""
    return (16, bits) if bits <= _UNIFORM else (32, 0)


class BitDistiller(DenseMethod):
    """See the module."""

    name = "bitdistiller"
    needs_calibration = True
    settings: ClassVar = {
        b + sum(_side_bits(b)) / GROUP: Setting(
            f"{b} bits {'uniform' if b <= _UNIFORM else 'NormalFloat'} in groups of {GROUP}", b
        )
        for b in (2, 3, 4)
    }
    schedule: ClassVar = Schedule()
    context: ClassVar[int] = 256
    """Tokens of a window in training at most."""

    def prepare(
        self,
        model: nn.Module,
        windows: Tensor | None,
        on_progress: Callable[[float, str], None] = lambda share, note: None,
    ) -> Prepared | None:
        """Clip the matrices and train them."""
        if windows is None:
            raise CalibrationError(f"{self.name} learns from text; give --calibration")
        bits = self.setting.bits
        text = pieces(windows, self.context)
        seen = hessians(model, self.matrices, windows, lambda share: on_progress(share / 4, ""))
        teacher = copy.deepcopy(model)
        for i, (name, W) in enumerate(weights(model, self.matrices).items(), start=1):
            W.copy_(clipped(W, bits, seen.get(name)))
            on_progress(0.25 + i / len(self.matrices) / 4, f"{name} clipped")
        mix = confidence(teacher, text)

        def loss(found: Logits, wanted: Logits) -> Tensor:
            return mix * reverse_kl(found, wanted) + (1 - mix) * forward_kl(found, wanted)

        latent = train_rounded(
            model,
            teacher,
            self.matrices,
            lambda W: round_groups(W, bits),
            loss,
            text,
            self.schedule,
            seed=self.seed,
            on_progress=lambda share, note: on_progress(0.5 + share / 2, note),
        )
        return Prepared(latent, {})

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`; H has done its part in `prepare`."""
        bits = self.setting.bits
        return [Quantised(round_groups(x.W, bits), _budget(x.W, bits)) for x in layers]


def _budget(W: Tensor, bits: int) -> BitBudget:
    scale_bits, zero_bits = _side_bits(bits)
    m, n = W.shape
    return grouped_budget(m, n, bits, group=GROUP, scale_bits=scale_bits, zero_bits=zero_bits)


@cache
def normal_float(bits: int) -> Tensor:
    """Values of NormalFloat: quantiles of a normal distribution, -1, 0 and 1 among them.

    Example:
        >>> normal_float(3)[:4]  # as the paper's code has them
        tensor([-1.0000, -0.5350, -0.2469,  0.0000])
    """
    half = 2 ** (bits - 1)
    end = 1 - (1 / (2 * half - 1) + 1 / (2 * half)) / 4
    above, below = (
        torch.special.ndtri(torch.linspace(end, 0.5, count + 1, dtype=torch.float64)[:-1])
        for count in (half, half - 1)
    )
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat([-below / below[0], zero, (above / above[0]).flip(0)]).float()


def round_groups(W: Float[Tensor, "m n"], bits: int) -> Float[Tensor, "m n"]:
    """Every group of a row on the grid that spans it."""
    if bits <= _UNIFORM:
        parts = [Grid.of(part, bits).round(part) for part in W.split(GROUP, dim=1)]
    else:
        parts = [_round_normal(part, bits) for part in W.split(GROUP, dim=1)]
    return torch.cat(parts, dim=1)


def _round_normal(W: Float[Tensor, "m group"], bits: int) -> Float[Tensor, "m group"]:
    values = normal_float(bits)
    above = W.amax(1, keepdim=True).clamp_min(0).half().float()
    below = (-W.amin(1, keepdim=True)).clamp_min(0).half().float()
    scale = torch.where(W >= 0, above, below)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.bucketize(W / scale, (values[1:] + values[:-1]) / 2)
    return values[codes] * scale


def clipped(
    W: Float[Tensor, "m n"], bits: int, H: Float[Tensor, "n n"] | None
) -> Float[Tensor, "m n"]:
    """Every group within the limits that make the outputs of its rounded weights best.

    Args:
        W: the matrix.
        bits: of a code.
        H: Hessian of its input; None counts all inputs alike.
    """
    parts = []
    for start, part in zip(range(0, W.shape[1], GROUP), W.split(GROUP, dim=1), strict=True):
        stop = start + part.shape[1]
        own = torch.eye(stop - start) if H is None else H[start:stop, start:stop]
        low = part.amin(1, keepdim=True).clamp_max(0)
        high = part.amax(1, keepdim=True).clamp_min(0)
        best, least = part, torch.full((len(part), 1), torch.inf)
        for up, down in product(_SHRINK, _SHRINK):
            tried = torch.minimum(torch.maximum(part, down * low), up * high)
            E = part - round_groups(tried, bits)
            loss = ((E @ own) * E).sum(1, keepdim=True)
            best = torch.where(loss < least, tried, best)
            least = torch.minimum(loss, least)
        parts.append(best)
    return torch.cat(parts, dim=1)


@torch.no_grad()
def confidence(model: nn.Module, text: Int[Tensor, "windows context"]) -> float:
    """Mean probability that a model gives to the tokens of a text, each after those before it."""
    total = 0.0
    for batch in text.split(max(1, 2048 // text.shape[1])):
        p = model(input_ids=batch, use_cache=False).logits[:, :-1].float().softmax(-1)
        total += float(p.gather(2, batch[:, 1:, None]).double().sum())
    return total / text[:, 1:].numel()
