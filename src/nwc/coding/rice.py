"""Rice code of short integer sequences: scales, levels, tables and patches of a tensor.

A sequence is cut into blocks of 16 values. Every block has a 4-bit parameter k; k = 15 says that
the whole block is zero and nothing else of it is stored. The value v of another block is written
as v >> k zero bits and a one bit (the unary plane), and k low bits (the remainder plane). Planes
are stored one after the other, each padded to whole bytes, bits from the most significant down:

    parameters | remainders | unary

Keeping the planes apart lets the whole sequence be decoded with array operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 16
ZERO_BLOCK = 15
MAX_K = 14
MAX_VALUE = 2**20
"""Largest value; bounds the unary plane that a decoder must be ready for."""


def zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Signed to unsigned: 0, -1, 1, -2 ... become 0, 1, 2, 3 ...

    Example:
        >>> zigzag(np.array([0, -1, 1, -2]))
        array([0, 1, 2, 3])
    """
    values = np.asarray(values, dtype=np.int64)
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unzigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Inverse of `zigzag`."""
    return np.where(values & 1, -(values >> 1) - 1, values >> 1)


def encode(values: NDArray[np.int64]) -> bytes:
    """Code unsigned values below `MAX_VALUE`.

    Example:
        >>> decode(encode(np.array([3, 0, 200])), 3)
        (array([  3,   0, 200]), 5)
    """
    values = np.asarray(values, dtype=np.int64)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < MAX_VALUE:
        raise ValueError(f"Rice code holds 0 ... {MAX_VALUE - 1}")
    blocks = -(-len(values) // BLOCK)
    padded = np.zeros(blocks * BLOCK, dtype=np.int64)
    padded[: len(values)] = values
    rows = padded.reshape(blocks, BLOCK)
    candidates = np.arange(MAX_K + 1)
    sizes = np.minimum(BLOCK, len(values) - BLOCK * np.arange(blocks))
    cost = (rows[:, :, None] >> candidates).sum(axis=1) + sizes[:, None] * (1 + candidates)
    ks = cost.argmin(axis=1) if blocks else np.zeros(0, dtype=np.int64)
    ks[rows.max(axis=1, initial=0) == 0] = ZERO_BLOCK
    k = np.repeat(ks, BLOCK)[: len(values)]
    live = k != ZERO_BLOCK
    k, values = k[live], values[live]
    parameter_bits = ((ks[:, None] >> np.arange(3, -1, -1)) & 1).ravel()
    remainder_bits = _low_bits(values, k)
    quotients = values >> k
    unary = np.zeros(int((quotients + 1).sum()), dtype=np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    planes = (parameter_bits, remainder_bits, unary)
    return b"".join(np.packbits(plane.astype(np.uint8)).tobytes() for plane in planes)


def _low_bits(values: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """The k low bits of every value, most significant first, end to end."""
    columns = np.arange(MAX_K - 1, -1, -1)
    bits = (values[:, None] >> columns) & 1
    return bits[columns[None, :] < k[:, None]]


def decode(data: bytes | memoryview, count: int) -> tuple[NDArray[np.int64], int]:
    """Decode `count` values from the start of data.

    Returns:
        The values and the number of bytes read.

    Raises:
        BitstreamError: data ends too early, or a value is out of range.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    blocks = -(-count // BLOCK)
    parameter_bytes = (blocks + 1) // 2
    if parameter_bytes > len(raw):
        raise BitstreamError(
            f"Rice code of {count} values wants {parameter_bytes} parameter bytes, got {len(raw)}"
        )
    nibbles = np.stack([raw[:parameter_bytes] >> 4, raw[:parameter_bytes] & 15], axis=1)
    k = np.repeat(nibbles.reshape(-1)[:blocks].astype(np.int64), BLOCK)[:count]
    live = np.flatnonzero(k != ZERO_BLOCK)
    k = k[live]
    total = int(k.sum())
    remainder_bytes = -(-total // 8)
    start = parameter_bytes + remainder_bytes
    if start > len(raw):
        raise BitstreamError(
            f"Rice code of {count} values wants {start} bytes before its unary plane, "
            f"got {len(raw)}"
        )
    # The k bits of a value lie within the three bytes from its first bit on.
    padded = np.zeros(remainder_bytes + 3, dtype=np.int64)
    padded[:remainder_bytes] = raw[parameter_bytes:start]
    three = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    first = np.cumsum(k) - k
    remainders = three[first >> 3] >> (24 - (first & 7) - k) & ((1 << k) - 1)
    ones, unary_bytes = _first_ones(raw[start:], len(live))
    quotients = ones.copy()
    quotients[1:] -= ones[:-1] + 1
    if len(quotients) and int(quotients.max()) >= MAX_VALUE:
        raise BitstreamError(f"Rice code holds a value above {MAX_VALUE - 1}")
    found = (quotients << k) + remainders
    if len(found) and int(found.max()) >= MAX_VALUE:
        raise BitstreamError(f"Rice code holds a value above {MAX_VALUE - 1}")
    values = np.zeros(count, dtype=np.int64)
    values[live] = found
    return values, start + unary_bytes


def _first_ones(raw: NDArray[np.uint8], count: int) -> tuple[NDArray[np.int64], int]:
    """Positions of the first `count` one bits, and the whole bytes that they take."""
    if count == 0:
        return np.zeros(0, dtype=np.int64), 0
    totals = np.cumsum(np.bitwise_count(raw), dtype=np.int64)
    used = int(np.searchsorted(totals, count)) + 1
    if used > len(raw):
        have = int(totals[-1]) if len(totals) else 0
        raise BitstreamError(f"Rice code ends after {have} of {count} values")
    return np.flatnonzero(np.unpackbits(raw[:used]))[:count], used
