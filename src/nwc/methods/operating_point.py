r"""How finely every weight of a matrix is quantised: steps, and which tables code them.

Under LDLQ the layer's loss is :math:`\sum_{ik} g_i d_k e_{ik}^2` with D of H = L^T D L and g_i the
second moment of the model's gradient at output i. At a given rate it is least when every weight
contributes the same (reverse water-filling), that is with steps proportional to
:math:`1 / \sqrt{g_i d_k}`. Neither the codec nor the tables need to know why a step is what it
is: they see the ratio of a weight's spread to its step, in classes half an octave apart, and the
scales that are stored anyway carry the rest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nwc.calibration.importance import importance_levels
from nwc.codec import scales as scale_codes
from nwc.codec.config import MAX_LOG2_GAIN
from nwc.codec.model import WeightCodec
from nwc.coding.container import MAX_CLASSES, Section
from nwc.coding.tiling import Classes
from nwc.numerics.chunking import CHUNK, chunk_count, column_scales

if TYPE_CHECKING:
    from jaxtyping import Float

CLASSES_PER_OCTAVE = 2

FLOOR = 0.1
"""Multiple of their mean added to every d_k and g_i before water-filling.

The calibration text decides which inputs are quiet; other text may be louder there, and at low
rates a column that is left out altogether costs more than the quadratic loss says.
"""


class OperatingPoint(NamedTuple):
    """How a matrix is quantised.

    The step of a weight is scale of its column times scale of its row times 2^-c, c = log2_gain
    plus the offset of its class.

    Args:
        sections: scales and gain, as the stream holds them.
        scales: [n], as a reader gets them.
        row_scales: [m], the same.
        classes: of columns and rows.
        log2_gain: of class 0.
    """

    sections: dict[Section, bytes]
    scales: Tensor
    row_scales: Tensor
    classes: Classes
    log2_gain: float

    def part(self, columns: slice) -> OperatingPoint:
        """That of some columns, without sections."""
        classes = self.classes.part(columns, slice(None))
        return self._replace(sections={}, scales=self.scales[columns], classes=classes)


def by_levels(
    W: Float[Tensor, "m n"], diagonal: Tensor | None, log2_gain: float, codec: WeightCodec
) -> OperatingPoint:
    """As the paper: FP16 scales, importance levels by quantile of diag H (Sec. 3.1, App. E)."""
    packed, scales = scale_codes.pack_f16(column_scales(W))
    levels = torch.zeros(len(scales), dtype=torch.uint8)
    if diagonal is not None:
        levels = importance_levels(diagonal.cpu(), codec.usable_levels(log2_gain))
    return _point(W, {Section.SCALES_F16: packed}, scales, levels, log2_gain)


def one_step(W: Float[Tensor, "m n"], log2_gain: float) -> OperatingPoint:
    """One step for the whole matrix, in proportion to its root mean square."""
    packed, scales = scale_codes.pack_single(float(column_scales(W.reshape(-1, 1))), W.shape[1])
    levels = torch.zeros(len(scales), dtype=torch.uint8)
    return _point(W, {Section.SCALE: packed}, scales, levels, log2_gain)


def normalised(W: Float[Tensor, "m n"], log2_gain: float) -> OperatingPoint:
    """One gain for all columns, each divided by its root mean square (data-free)."""
    packed, scales = scale_codes.pack_log(column_scales(W))
    levels = torch.zeros(len(scales), dtype=torch.uint8)
    return _point(W, {Section.SCALES_LOG: packed}, scales, levels, log2_gain)


def natural_gain(
    W: Float[Tensor, "m n"], d: Float[Tensor, " n"], g: Float[Tensor, " m"]
) -> float | None:
    """Mean log2(spread / step) of the columns if steps were 1 / sqrt(g_i d_k) exactly.

    That one number says how much finer a layer wants to be quantised than another. None for a
    layer without weights.
    """
    rows = -0.5 * _log2_floored(g, g)
    spread = column_scales(W * torch.exp2(-rows)[:, None])
    alive = spread > 0
    if not alive.any() or not g.any():
        return None
    return float((spread[alive].log2() + 0.5 * _log2_floored(d, d[alive])[alive]).mean())


def waterfilled(
    W: Float[Tensor, "m n"],
    d: Float[Tensor, " n"],
    g: Float[Tensor, " m"] | None,
    log2_gain: float,
    floor: float = FLOOR,
) -> OperatingPoint:
    """Steps in proportion to 1 / sqrt(g_i d_k), around a mean gain.

    Args:
        W: the matrix.
        d: diagonal of D.
        g: weight of every row; None treats rows alike.
        log2_gain: mean over the columns of log2(spread / step).
        floor: see `FLOOR`.
    """
    rows = torch.zeros(len(W)) if g is None else -0.5 * _log2_floored(g, g, floor)
    normal = W * torch.exp2(-rows)[:, None]
    spread = column_scales(normal)
    alive = spread > 0
    if not alive.any():
        return normalised(W, log2_gain)
    # Dead columns take no part in what follows.
    step = torch.where(alive, -0.5 * _log2_floored(d, d[alive], floor), torch.zeros_like(spread))
    gain = torch.where(alive, spread, torch.ones_like(spread)).log2() - step
    shift = log2_gain - gain[alive].mean()
    gain, step = gain + shift, step - shift
    excess = torch.zeros(len(W))
    if g is not None:
        excess = _excess(normal, spread, alive)
    # A table holds 256 symbols, which sets the finest step; what leaves it costs a patch.
    most = max(MAX_LOG2_GAIN, log2_gain)
    coarser = (gain - most + float(excess.quantile(0.95))).clamp_min(0)
    coarser = torch.minimum(coarser, (gain - log2_gain).clamp_min(0))
    gain, step = gain - coarser, step + coarser
    coarser = (excess - most + float(gain[alive].max())).clamp_min(0)
    coarser = torch.minimum(coarser, excess.clamp_min(0))
    excess, rows = excess - coarser, rows + coarser

    # A class decides tables and reconstruction points; the step is right whatever the class.
    row_class = (CLASSES_PER_OCTAVE * (excess - excess.min())).round().clamp_max(7)
    most = MAX_CLASSES - 1 - int(row_class.max())
    highest = gain[alive].max()
    above = (CLASSES_PER_OCTAVE * (gain - highest)).round().clamp(-most, 0)
    column_class = torch.where(alive, above - above[alive].min(), torch.zeros_like(above))
    base = float(highest) + float(above[alive].min()) / CLASSES_PER_OCTAVE + float(excess.min())
    # The scales take up the difference, and all matrices can share their tables.
    base = round(CLASSES_PER_OCTAVE * base) / CLASSES_PER_OCTAVE
    finest = int(CLASSES_PER_OCTAVE * max(0.0, MAX_LOG2_GAIN - base))
    column_class = column_class.clamp_max(finest)
    row_class = row_class.clamp_max(finest - int(column_class.max()))
    scales = torch.exp2(step + base + column_class / CLASSES_PER_OCTAVE)
    packed, scales = scale_codes.pack_log(torch.where(alive, scales, torch.zeros_like(scales)))
    point = _point(W, {Section.SCALES_LOG: packed}, scales, column_class.to(torch.uint8), base)
    if g is None:
        return point
    packed, row_scales = scale_codes.pack_log(torch.exp2(rows + row_class / CLASSES_PER_OCTAVE))
    point.sections[Section.ROW_SCALES] = packed
    padded = np.zeros(chunk_count(len(W)) * CHUNK, dtype=np.uint8)
    padded[: len(W)] = row_class.to(torch.uint8).numpy()
    classes = Classes(point.classes.columns, padded.reshape(-1, CHUNK))
    return point._replace(row_scales=row_scales, classes=classes)


def _excess(normal: Tensor, spread: Tensor, alive: Tensor) -> Tensor:
    """log2 of how much wider each row spreads than its columns do on average."""
    ratio = normal * torch.where(alive, 1 / spread, torch.zeros_like(spread))
    wider = column_scales(ratio.T) * (len(spread) / int(alive.sum())) ** 0.5
    return torch.where(wider > 0, wider, torch.ones_like(wider)).log2()


def _log2_floored(values: Tensor, typical: Tensor, floor: float = FLOOR) -> Tensor:
    floored = values.double() + floor * typical.double().mean()
    return torch.where(floored > 0, floored, torch.ones_like(floored)).log2().float()


def _point(
    W: Tensor, sections: dict[Section, bytes], scales: Tensor, levels: Tensor, log2_gain: float
) -> OperatingPoint:
    # The stream stores the gain in FP32; quantise with what a reader will read.
    packed = struct.pack("<f", log2_gain)
    classes = Classes.by_column(levels.numpy(), chunk_count(len(W)))
    return OperatingPoint(
        {**sections, Section.GAIN: packed},
        scales,
        torch.ones(len(W)),
        classes,
        struct.unpack("<f", packed)[0],
    )
