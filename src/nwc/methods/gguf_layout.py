"""Super-blocks of ggml's k-quants as bytes.

Written from the layout of `block_q2_K` ... `block_q6_K` in ggml. Codes of 256 weights are spread
over bytes so that 32 neighbours can be read at once: weight 32 i + l of a half or a quarter of the
super-block lies in byte l, and i decides which bits of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nwc.coding.rate import BitBudget

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPER_BLOCK = 256


class KType(NamedTuple):
    """A type of k-quant.

    Args:
        name: in ggml.
        bits: of a code.
        size: weights of a sub-block.
        scale_bits: of an integer scale.
        middle: code of 0, if there are no minima; else 0.
        bytes: of a super-block.
    """

    name: str
    bits: int
    size: int
    scale_bits: int
    middle: int
    bytes: int


Q2_K = KType("Q2_K", 2, 16, 4, 0, 84)
Q3_K = KType("Q3_K", 3, 16, 6, 4, 110)
Q4_K = KType("Q4_K", 4, 32, 6, 0, 144)
Q5_K = KType("Q5_K", 5, 32, 6, 0, 176)
Q6_K = KType("Q6_K", 6, 16, 8, 32, 210)
TYPES = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)


def pack(
    kind: KType,
    *,
    codes: NDArray[np.int16],
    scales: NDArray[np.int16],
    minima: NDArray[np.int16],
    d: NDArray[np.float16],
    d_min: NDArray[np.float16],
) -> NDArray[np.uint8]:
    """Super-blocks [blocks, bytes].

    Args:
        kind: the type.
        codes: [blocks, sub-blocks, size], from 0 on.
        scales: [blocks, sub-blocks].
        minima: the same.
        d: [blocks].
        d_min: the same.
    """
    count = len(codes)
    q = codes.reshape(count, SUPER_BLOCK).astype(np.uint8)
    first, second = _half(d), _half(d_min)
    if kind.bits == 2:
        both = (scales | (minima << 4)).astype(np.uint8)
        parts = [both, _spread(q, 0, 2, 128), first, second]
    elif kind.bits == 3:
        high, low = _spread(q, 2, 1, 256), _spread(q, 0, 2, 128)
        parts = [high, low, _signed_six(scales + 32), first]
    elif kind.bits == 4:
        parts = [first, second, _six(scales, minima), _spread(q, 0, 4, 64)]
    elif kind.bits == 5:
        high, low = _spread(q, 4, 1, 256), _spread(q, 0, 4, 64)
        parts = [first, second, _six(scales, minima), high, low]
    else:
        high, low = _spread(q, 4, 2, 128), _spread(q, 0, 4, 128, apart=64)
        parts = [low, high, scales.astype(np.int8).view(np.uint8), first]
    packed = np.concatenate(parts, axis=1)
    assert packed.shape[1] == kind.bytes
    return packed


def spent(packed: NDArray[np.uint8], kind: KType) -> BitBudget:
    """Bytes of super-blocks by purpose: codes, and all that belongs to scales."""
    payload = len(packed) * SUPER_BLOCK * kind.bits // 8
    return BitBudget(payload=payload, scales=packed.size - payload)


def _spread(
    q: NDArray[np.uint8], first: int, bits: int, span: int, apart: int = 32
) -> NDArray[np.uint8]:
    """Some bits of codes: in every span byte l holds those of the weights l, l + apart, ...

    Args:
        q: [blocks, 256].
        first: lowest of the bits.
        bits: how many.
        span: weights that share `apart` bytes.
        apart: distance of weights in a byte.
    """
    part = (q >> np.uint8(first)) & np.uint8(2**bits - 1)
    groups = part.reshape(len(q), -1, span // apart, apart)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[: span // apart, None]
    return np.bitwise_or.reduce(groups << shifts, axis=2).reshape(len(q), -1)


def _six(scales: NDArray[np.int16], minima: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    low_scales, high_scales = scales[:, :4], scales[:, 4:]
    low_minima, high_minima = minima[:, :4], minima[:, 4:]
    parts = [
        low_scales | ((high_scales >> 4) << 6),
        low_minima | ((high_minima >> 4) << 6),
        (high_scales & 15) | ((high_minima & 15) << 4),
    ]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def _signed_six(scales: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Sixteen scales of 6 bits, 32 added to each, in 12 bytes."""
    low = (scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4)
    high = (scales >> 4).reshape(len(scales), 4, 4)
    high = np.bitwise_or.reduce(high << (2 * np.arange(4))[:, None], axis=1)
    return np.concatenate([low, high], axis=1).astype(np.uint8)


def _half(values: NDArray[np.float16]) -> NDArray[np.uint8]:
    return values.astype("<f2").view(np.uint8).reshape(len(values), 2)
