"""Column scales as bytes: FP16 as the paper stores them, or logarithmic at a bit or two each.

A chunk codec needs its input near unit variance, no more: a scale that is 9 % off moves a column's
step by 0.12 bit, and rounding every scale to a quarter octave costs 0.004 bit at equal error. So
the logarithmic kind rounds log2(scale) to a grid around a base, and the codec then normalises by
the rounded scale.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nwc.coding import rice
from nwc.coding.container import Container, Section
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from jaxtyping import Float

STEPS_PER_OCTAVE = 4
_LIMIT = 2**14


def pack_log(
    scales: Float[Tensor, " n"], steps_per_octave: int = STEPS_PER_OCTAVE
) -> tuple[bytes, Float[Tensor, " n"]]:
    """Scales rounded to powers of 2^(1 / steps) times their median.

    Layout: u8 steps per octave, FP32 base, then the Rice code of 0 for a dead column and
    1 + zigzag(step) for the others.

    Args:
        scales: 0 for dead columns.
        steps_per_octave: 1 to 255.

    Returns:
        The bytes, and the scales that a reader gets from them.
    """
    live = scales > 0
    base = np.float32(scales[live].median()) if live.any() else np.float32(1)
    relative = scales.double().numpy() / float(base)
    steps = np.zeros(len(scales), dtype=np.int64)
    alive = live.numpy()
    steps[alive] = np.rint(steps_per_octave * np.log2(relative[alive]))
    steps = np.clip(steps, -_LIMIT, _LIMIT)
    codes = np.where(alive, 1 + rice.zigzag(steps), 0)
    data = struct.pack("<Bf", steps_per_octave, base) + rice.encode(codes)
    return data, _unpack_log(data, len(scales))


def _unpack_log(data: bytes | memoryview, n: int) -> Float[Tensor, " n"]:
    if len(data) < 5:
        raise BitstreamError(f"scales have {len(data)} bytes, wanted at least 5")
    steps_per_octave, base = struct.unpack_from("<Bf", data)
    codes, used = rice.decode(memoryview(data)[5:], n)
    if used != len(data) - 5 or steps_per_octave == 0 or not 0 < base < np.inf:
        raise BitstreamError(
            f"scales take {used + 5} of {len(data)} bytes, {steps_per_octave} steps per octave, "
            f"base {base}"
        )
    with np.errstate(over="ignore", under="ignore"):
        values = float(base) * np.exp2(rice.unzigzag(np.maximum(codes - 1, 0)) / steps_per_octave)
    values = np.clip(values, 0, np.finfo(np.float32).max)
    return torch.from_numpy(np.where(codes == 0, 0.0, values).astype(np.float32))


def pack_f16(scales: Float[Tensor, " n"]) -> tuple[bytes, Float[Tensor, " n"]]:
    """Scales in FP16 times one FP32 base, which is 1 unless some scale leaves FP16's range.

    Returns:
        The bytes, and the scales that a reader gets from them.
    """
    live = scales[scales > 0]
    fits = len(live) == 0 or bool((live.min() >= 2.0**-14) & (live.max() < 65504))
    base = np.float32(1) if fits else np.float32(live.median())
    ratio = (scales.double() / float(base)).clamp(max=65504)
    # A live column must not die by underflow.
    ratio = torch.where(scales > 0, ratio.clamp(min=2.0**-24), ratio)
    data = struct.pack("<f", base) + ratio.half().numpy().astype("<f2").tobytes()
    return data, _unpack_f16(data, len(scales))


def _unpack_f16(data: bytes | memoryview, n: int) -> Float[Tensor, " n"]:
    if len(data) != 4 + 2 * n:
        raise BitstreamError(f"scales have {len(data)} bytes, wanted {4 + 2 * n}")
    base = struct.unpack_from("<f", data)[0]
    ratio = np.frombuffer(data, dtype="<f2", offset=4).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        values = (ratio * base).astype(np.float32)
    if not np.isfinite(values).all() or (values < 0).any():
        raise BitstreamError("a scale is negative or not finite")
    return torch.from_numpy(values)


def pack_single(scale: float, n: int) -> tuple[bytes, Float[Tensor, " n"]]:
    """One FP32 scale for the whole matrix."""
    data = struct.pack("<f", scale)
    return data, torch.full((n,), struct.unpack("<f", data)[0])


def unpack_rows(container: Container) -> Float[Tensor, " m"] | None:
    """The row scales that a stream carries, as `pack_log` makes them; None if it has none.

    Raises:
        BitstreamError: they are damaged.
    """
    data = container.sections.get(Section.ROW_SCALES)
    return None if data is None else _unpack_log(data, container.head.rows)


def unpack(container: Container) -> Float[Tensor, " n"]:
    """The column scales that a stream carries, in whichever form.

    Raises:
        BitstreamError: it carries none, or damaged ones.
    """
    columns = container.head.columns
    if Section.SCALES_LOG in container.sections:
        return _unpack_log(container.section(Section.SCALES_LOG), columns)
    if Section.SCALES_F16 in container.sections:
        return _unpack_f16(container.section(Section.SCALES_F16), columns)
    data = container.section(Section.SCALE)
    if len(data) != 4 or not np.isfinite(struct.unpack("<f", data)[0]):
        raise BitstreamError(f"scale of the matrix is {bytes(data[:8])!r}, wanted a finite float")
    return torch.full((columns,), struct.unpack("<f", data)[0])
