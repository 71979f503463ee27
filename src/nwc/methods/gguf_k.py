r"""K-quants of llama.cpp: super-blocks of 256 weights whose scales are quantised as well.

A super-block is 8 or 16 sub-blocks. Of sub-block j, with codes q of b bits, it restores

.. math:: \hat w = d \, c_j \, q - d' \, c'_j \quad (\text{Q2\_K, Q4\_K, Q5\_K}), \qquad
   \hat w = d \, c_j \, (q - 2^{b-1}) \quad (\text{Q3\_K, Q6\_K})

with integers c, c' and d, d' in FP16: 2.625, 3.4375, 4.5, 5.5 and 6.5625 bits, all told. The
layout in bytes is that of ggml (`methods.gguf_layout`); package `gguf` reads it, and in version
0.19 quantises none of it. So scales are searched here, in the manner of llama.cpp: for ranges of
every sub-block around the one that spans it the least squares of its scale (and minimum), and the
best of them is kept; then scales are rounded and codes chosen again.

Squared errors are weighted. Without H, by |w| plus its root mean square in the sub-block (by w^2
for Q3_K and Q6_K); with H by H_kk (w^2 + the mean square of the super-block)^1/2, which is what
llama.cpp does with an importance matrix.

llama.cpp wants rows of a multiple of 256 and takes another type for others. Here the rows of a
matrix follow one another and super-blocks run across them, the last one padded with zeros and
counted whole. Mixtures such as Q4_K_M, which give some matrices more bits, are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting
from nwc.methods.gguf_layout import SUPER_BLOCK, TYPES, KType, pack, spent

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_AROUND = 20
"""Tenths of a code by which the range is tried wider, and narrower, half of that each."""


class KBlocks(NamedTuple):
    """Super-blocks after quantisation.

    Args:
        codes: [blocks, sub-blocks, size], from 0 on.
        scales: [blocks, sub-blocks], integers c.
        minima: the same, c'; zeros for types without.
        d: [blocks], FP16.
        d_min: [blocks], FP16.
    """

    codes: Int[Tensor, "blocks subs size"]
    scales: Int[Tensor, "blocks subs"]
    minima: Int[Tensor, "blocks subs"]
    d: Float[Tensor, " blocks"]
    d_min: Float[Tensor, " blocks"]

    def restore(self, kind: KType) -> Float[Tensor, "blocks 256"]:
        """The weights that a reader gets."""
        scale = self.d.float()[:, None] * self.scales
        low = self.d_min.float()[:, None] * self.minima
        found = scale[..., None] * (self.codes - kind.middle) - low[..., None]
        return found.flatten(1)


class GGUFK(DenseMethod):
    """See the module."""

    name = "gguf_k"
    settings: ClassVar = {
        8 * kind.bytes / SUPER_BLOCK: Setting(kind.name, kind.bits) for kind in TYPES
    }

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`."""
        kind = next(kind for kind in TYPES if kind.name == self.setting.label)
        found = []
        for layer in layers:
            importance = None if H is None else H.diagonal().cpu().expand_as(layer.W)
            x = to_super_blocks(layer.W)
            blocks = quantise(x, kind, None if importance is None else to_super_blocks(importance))
            weight = blocks.restore(kind).flatten()[: layer.W.numel()].view_as(layer.W)
            packed = pack(kind, **{k: v.numpy() for k, v in blocks._asdict().items()})
            found.append(Quantised(weight, spent(packed, kind)))
        return found


def to_super_blocks(W: Float[Tensor, "m n"]) -> Float[Tensor, "blocks 256"]:
    """Row after row in pieces of 256, the last one padded with zeros."""
    flat = W.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % SUPER_BLOCK)).view(-1, SUPER_BLOCK)


def quantise(
    x: Float[Tensor, "blocks 256"],
    kind: KType,
    importance: Float[Tensor, "blocks 256"] | None = None,
) -> KBlocks:
    """Super-blocks in one of the types.

    Args:
        x: the weights.
        kind: the type.
        importance: of every weight; None for the type's own choice.
    """
    shape = (len(x), SUPER_BLOCK // kind.size, kind.size)
    parts = x.reshape(shape)
    if importance is not None:
        weights = importance * (x.square() + x.square().mean(1, keepdim=True)).sqrt()
        weights = weights.reshape(shape)
    elif kind.middle:
        weights = parts.square()
    else:
        weights = parts.abs() + parts.square().mean(2, keepdim=True).sqrt()
    # Where nothing has weight (an input that is never on) all errors count alike.
    weights = torch.where(weights.sum(2, keepdim=True) > 0, weights, 1.0)
    if kind.middle:
        c, d = _signed(_symmetric_scales(parts, weights, kind), kind)
        minima, d_min = torch.zeros_like(c), torch.zeros_like(d)
    else:
        scale, low = _affine_scales(parts, weights, kind)
        c, d = _unsigned(scale, kind)
        minima, d_min = _unsigned(low, kind)
    scale = (d.float()[:, None] * c)[..., None]
    low = (d_min.float()[:, None] * minima)[..., None]
    codes = _codes(parts + low, scale, kind)
    return KBlocks(codes, c, minima, d, d_min)


def _affine_scales(x: Tensor, weights: Tensor, kind: KType) -> tuple[Tensor, Tensor]:
    """Scale and minus the minimum of every sub-block, both at least 0."""
    last = 2**kind.bits - 1
    low = x.amin(2, keepdim=True).clamp_max(0)
    span = x.amax(2, keepdim=True).clamp_min(0) - low
    span = torch.where(span > 0, span, 1.0)
    total = weights.sum(2)
    x_sum, least = (weights * x).sum(2), torch.full(x.shape[:2], float("inf"))
    best = torch.zeros_like(least), torch.zeros_like(least)
    for tenths in range(-_AROUND // 2, _AROUND // 2 + 1):
        q = ((x - low) * ((last + 0.1 * tenths) / span)).round().clamp(0, last)
        wq = weights * q
        q_sum, qq, qx = wq.sum(2), (wq * q).sum(2), (wq * x).sum(2)
        determinant = total * qq - q_sum.square()
        flat = determinant <= 1e-7 * total * qq
        safe = torch.where(flat, 1.0, determinant)
        scale = (total * qx - q_sum * x_sum) / safe
        shift = (qq * x_sum - q_sum * qx) / safe
        # A minimum above 0 cannot be stored; all codes alike leave the scale open.
        alone = flat | (shift > 0)
        scale = torch.where(alone, qx / torch.where(qq > 0, qq, 1.0), scale).clamp_min(0)
        shift = torch.where(alone, 0.0, shift)
        error = x - (scale[..., None] * q + shift[..., None])
        loss = (weights * error.square()).sum(2)
        better = loss < least
        best = torch.where(better, scale, best[0]), torch.where(better, -shift, best[1])
        least = torch.minimum(least, loss)
    return best


def _symmetric_scales(x: Tensor, weights: Tensor, kind: KType) -> Tensor:
    """Scale of every sub-block, of either sign: its largest weight is to have the lowest code."""
    place = x.abs().argmax(2, keepdim=True)
    peak = x.gather(2, place)
    peak = torch.where(peak != 0, peak, 1.0)
    found = torch.zeros(x.shape[:2])
    least = torch.full_like(found, float("inf"))
    for tenths in range(-_AROUND // 2, _AROUND // 2 + 1):
        q = (x * (-(kind.middle + 0.1 * tenths) / peak)).round()
        q = q.clamp(-kind.middle, kind.middle - 1)
        qq = (weights * q.square()).sum(2)
        scale = (weights * q * x).sum(2) / torch.where(qq > 0, qq, 1.0)
        loss = (weights * (x - scale[..., None] * q).square()).sum(2)
        found = torch.where(loss < least, scale, found)
        least = torch.minimum(least, loss)
    return found


def _unsigned(scales: Tensor, kind: KType) -> tuple[Tensor, Tensor]:
    """Integers c up to the largest, and d in FP16."""
    largest = 2**kind.scale_bits - 1
    d = (scales.amax(1) / largest).half()
    return _integers(scales, d).clamp(0, largest), d


def _signed(scales: Tensor, kind: KType) -> tuple[Tensor, Tensor]:
    """The same for scales of both signs, the largest of which gets the lowest integer."""
    lowest = -(2 ** (kind.scale_bits - 1))
    peak = scales.gather(1, scales.abs().argmax(1, keepdim=True))[:, 0]
    d = (peak / lowest).half()
    return _integers(scales, d).clamp(lowest, -lowest - 1), d


def _integers(scales: Tensor, d: Tensor) -> Tensor:
    unit = d.float()[:, None]
    return (scales / torch.where(unit != 0, unit, 1.0)).round().to(torch.int16)


def _codes(x: Tensor, scale: Tensor, kind: KType) -> Tensor:
    ratio = x / torch.where(scale != 0, scale, 1.0)
    q = torch.where(scale != 0, ratio, 0.0).round() + kind.middle
    return q.clamp(0, 2**kind.bits - 1).to(torch.int16)
