"""What a trained codec does to chunks it was not trained on: the table of its card."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nwc.codec.config import IDENTITY
from nwc.codec.model import WeightCodec
from nwc.coding.census import census, empirical_bits
from nwc.coding.tiling import Classes

if TYPE_CHECKING:
    from jaxtyping import Float

GAINS = (-0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 4.75)
"""log2 gains at which codecs conditioned on it are measured: 1.5 to 6.8 bits."""


@torch.no_grad()
def rate_distortion(
    codec: WeightCodec, chunks: Float[Tensor, "chunks 16"]
) -> list[dict[str, Any]]:
    """Bits and error of rounded latents, beside uniform scalar quantisation at equal error.

    Bits are entropies under tables counted on the chunks themselves, for both sides.

    Args:
        codec: a trained codec.
        chunks: normalised, from matrices kept out of training.
    """
    if codec.config.kind == "residual":
        points = [(level, codec.config.nominal_log2_gain) for level in range(codec.config.levels)]
    else:
        points = [(0, gain) for gain in GAINS]
    rows = []
    for level, gain in points:
        bits, mse = _measure(codec, chunks, level, gain)
        rows.append(
            {
                "level": level,
                "log2_gain": round(gain, 4),
                "bits_per_weight": round(bits, 4),
                "mse": float(f"{mse:.4g}"),
                "scalar_bits_at_equal_mse": round(_scalar_bits(chunks, mse), 4),
            }
        )
    return rows


def _measure(codec: WeightCodec, chunks: Tensor, level: int, gain: float) -> tuple[float, float]:
    each = torch.full((len(chunks),), level)
    z = codec.analysis(chunks, each, gain).round()
    mse = float((codec.synthesis(z, each, gain) - chunks).square().mean())
    symbols = z.clamp(-(2**15), 2**15 - 1).numpy().astype(np.int16)[None]
    classes = Classes.by_column(np.zeros(1, np.uint8), len(chunks))
    cells = census(symbols, classes, 1, share_lanes=codec.config.channels_share_tables)
    return empirical_bits(cells) / z.numel(), mse


def _scalar_bits(chunks: Tensor, mse: float) -> float:
    scalar = WeightCodec(IDENTITY)
    gain = -0.5 * math.log2(12 * mse)
    bits = 0.0
    for _ in range(6):  # the error of a scalar quantiser is almost exactly step^2 / 12
        bits, found = _measure(scalar, chunks, 0, gain)
        gain += 0.5 * math.log2(found / mse)
    return bits
