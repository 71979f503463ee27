"""Integer frequency tables: from counts or probabilities, and as bytes.

A table gives every integer of a range a frequency; the frequencies sum to 4,096. Floats stop here:
whoever holds the table decodes the same symbols on every machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import crc32c
import numpy as np

from nwc.coding import rice
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISION = 12
TOTAL = 1 << PRECISION
MAX_SYMBOLS = 256
MAX_BANK_TABLES = 4096
PATCH_BITS = 64
"""What one symbol outside its table costs: 32 bits of position and 32 of value."""

PRIOR_TAIL = 2.0**-14
"""Probability under which a prior's symbol is left to the patch list."""


@dataclass(frozen=True, eq=False)
class FrequencyTable:
    """Frequencies of the symbols first, first + 1, ...

    Args:
        first: smallest symbol, -2^15 ... 2^15 - 1.
        frequencies: 1 to 256 integers from 0 to 4,096 that sum to 4,096; both ends positive.

    Raises:
        BitstreamError: anything else.

    Example:
        >>> FrequencyTable(-1, np.array([1024, 2048, 1024])).code_lengths().tolist()
        [2.0, 1.0, 2.0]
    """

    first: int
    frequencies: NDArray[np.int64]
    key: bytes = field(init=False)
    """Identity of the table's content."""

    def __post_init__(self) -> None:
        f = self.frequencies
        if not 1 <= len(f) <= MAX_SYMBOLS:
            raise BitstreamError(f"table has {len(f)} symbols, wanted 1 to {MAX_SYMBOLS}")
        if int(f.min()) < 0 or int(f.sum()) != TOTAL:
            raise BitstreamError(
                f"table frequencies sum to {int(f.sum())} with smallest {int(f.min())}, "
                f"wanted {TOTAL} and none below 0"
            )
        if f[0] == 0 or f[-1] == 0:
            raise BitstreamError("table begins or ends with a symbol of frequency 0")
        if not -(2**15) <= self.first <= self.last < 2**15:
            raise BitstreamError(
                f"table reaches from {self.first} to {self.last}, wanted 16-bit symbols"
            )
        object.__setattr__(self, "key", struct.pack("<h", self.first) + f.astype("<u2").tobytes())

    def __len__(self) -> int:
        return len(self.frequencies)

    @property
    def last(self) -> int:
        """Largest symbol."""
        return self.first + len(self.frequencies) - 1

    @property
    def mode(self) -> int:
        """The most frequent symbol, the first of equals."""
        return self.first + int(self.frequencies.argmax())

    @property
    def modes(self) -> tuple[int, int]:
        """The most frequent even and odd symbol; the same one twice if it is the only one."""
        symbols = np.arange(self.first, self.last + 1)
        even, odd = (np.where(symbols & 1 == odd, self.frequencies, -1) for odd in (0, 1))
        return tuple(self.first + int(f.argmax()) for f in (even, odd))  # type: ignore[return-value]

    def starts(self) -> NDArray[np.int64]:
        """Sum of the frequencies before each symbol."""
        return np.cumsum(self.frequencies) - self.frequencies

    def code_lengths(self) -> NDArray[np.float64]:
        """Ideal code length of each symbol in bits; infinite where the frequency is 0."""
        with np.errstate(divide="ignore"):
            return PRECISION - np.log2(self.frequencies)


def quantise(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integer frequencies that code symbols of the given weights at the least cost.

    Every positive weight gets at least 1. From the rounded proportions, units are given or taken
    one at a time where that changes sum(weight * log2 frequency) most favourably.

    Example:
        >>> quantise(np.array([1.0, 0.0, 1e6])).tolist()
        [1, 0, 4095]
    """
    weights = np.asarray(weights, dtype=np.float64)
    live = weights > 0
    f = np.where(live, np.maximum(1, np.rint(weights / weights.sum() * TOTAL)), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        while (excess := int(f.sum()) - TOTAL) != 0:
            if excess > 0:
                loss = np.where(f > 1, weights * np.log(f / (f - 1)), np.inf)
                f[loss.argmin()] -= 1
            else:
                gain = np.where(live, weights * np.log((f + 1) / f), -np.inf)
                f[gain.argmax()] += 1
    return f.astype(np.int64)


def from_counts(first: int, counts: NDArray[np.int64], *, paired: bool = False) -> FrequencyTable:
    """The table for counted symbols first, first + 1, ...

    Symbols at the ends of the range are left to the patch list where that is cheaper than a
    place in the table, or where the range exceeds 256.

    Args:
        first: smallest symbol.
        counts: how often it and every integer after it occur.
        paired: the table must hold an even and an odd symbol if both occur. In a trellis the
            stand-in of a patched symbol has to lead to the same state.
    """
    low, high = 0, len(counts) - 1
    total = int(counts.sum())
    if total == 0:
        return FrequencyTable(0, np.array([TOTAL]))
    # A symbol in the table takes at least one of 4,096 units from all others and codes at 12 bits.
    unit = total / TOTAL / np.log(2)
    while low < high:
        end = low if counts[low] <= counts[high] else high
        inside = counts[end] * PRECISION + unit
        if high - low < MAX_SYMBOLS and counts[end] and counts[end] * PATCH_BITS >= inside:
            other = low + high - end
            inside = counts[other] * PRECISION + unit
            if counts[other] and counts[other] * PATCH_BITS >= inside:
                break
            end = other
        low, high = (low + 1, high) if end == low else (low, high - 1)
    weights = counts.astype(np.float64)
    both = paired and bool(counts[::2].any() and counts[1::2].any())
    if both:
        # A neighbour of the mode stands in for its kind if none of that is left.
        mode = int(counts[low : high + 1].argmax()) + low
        others = weights[low : high + 1][(mode + 1 - low) % 2 :: 2]
        if not others.any():
            beside = mode + 1 if mode + 1 < len(counts) else mode - 1
            weights[beside] = max(weights[beside], 1e-9)
            low, high = min(low, beside), max(high, beside)
    kept = quantise(weights[low : high + 1])
    if both:
        return FrequencyTable(first + low, kept)
    # With all but nothing beside the mode, rounding to units may cost more than patches do.
    alone = FrequencyTable(first + int(np.argmax(counts)), np.array([TOTAL]))
    candidates = (FrequencyTable(first + low, kept), alone)
    return min(candidates, key=lambda table: cost(table, first, counts))


def from_probabilities(
    first: int, pmf: NDArray[np.float64], *, paired: bool = False
) -> FrequencyTable:
    """The table of a prior; symbols in the far tails are left to the patch list.

    Args:
        first: smallest symbol.
        pmf: probability of it and of every integer after it.
        paired: see `from_counts`; the table has at least two symbols.
    """
    live = np.flatnonzero(pmf >= PRIOR_TAIL)
    if len(live) == 0:
        live = np.array([np.argmax(pmf)])
    low, high = int(live[0]), int(live[-1])
    if paired and low == high:
        low, high = max(0, low - 1), min(len(pmf) - 1, high + 1)
    while high - low >= MAX_SYMBOLS:
        low, high = (low + 1, high) if pmf[low] <= pmf[high] else (low, high - 1)
    inner = np.maximum(pmf[low : high + 1].astype(np.float64), PRIOR_TAIL)
    return FrequencyTable(first + low, quantise(inner))


def cost(table: FrequencyTable, first: int, counts: NDArray[np.int64]) -> float:
    """Bits that counted symbols take under the table, patches included.

    Example:
        >>> cost(FrequencyTable(0, np.array([2048, 2048])), 0, np.array([5, 5]))
        10.0
    """
    low, high = max(first, table.first), min(first + len(counts) - 1, table.last)
    lengths = np.full(len(counts), np.inf)
    if low <= high:
        lengths[low - first : high - first + 1] = table.code_lengths()[
            low - table.first : high - table.first + 1
        ]
    mode_bits = float(table.code_lengths()[table.mode - table.first])
    lengths = np.where(np.isinf(lengths), PATCH_BITS + mode_bits, lengths)
    return float((counts * lengths)[counts > 0].sum())


def choose_table(
    first: int, counts: NDArray[np.int64], prior: FrequencyTable | None, *, paired: bool = False
) -> FrequencyTable:
    """The counted table or the prior, whichever is smaller.

    Args:
        first: smallest symbol.
        counts: how often it and every integer after it occur.
        prior: if there is one.
        paired: see `from_counts`.
    """
    if not counts.any():
        return FrequencyTable(0, np.array([TOTAL]))
    own = from_counts(first, counts, paired=paired)
    own_bits = cost(own, first, counts) + 8 * len(to_bytes([own]))
    return own if prior is None or own_bits < cost(prior, first, counts) else prior


def to_bytes(tables: list[FrequencyTable]) -> bytes:
    """Tables as bytes: firsts, sizes, then the frequencies' differences in one Rice code.

    Example:
        >>> len(to_bytes([FrequencyTable(-1, np.array([1024, 2048, 1024]))]))
        9
    """
    firsts = np.array([t.first for t in tables], dtype="<i2").tobytes()
    sizes = np.array([len(t) - 1 for t in tables], dtype="u1").tobytes()
    steps = [np.diff(t.frequencies, prepend=0) for t in tables]
    joined = np.concatenate(steps) if steps else np.zeros(0, dtype=np.int64)
    return firsts + sizes + rice.encode(rice.zigzag(joined))


def from_bytes(data: bytes | memoryview, count: int) -> list[FrequencyTable]:
    """Inverse of `to_bytes`.

    Raises:
        BitstreamError: data is not exactly `count` valid tables.
    """
    if len(data) < 3 * count:
        raise BitstreamError(f"{count} tables want at least {3 * count} bytes, got {len(data)}")
    firsts = np.frombuffer(data, dtype="<i2", count=count)
    sizes = np.frombuffer(data, dtype="u1", count=count, offset=2 * count).astype(np.int64) + 1
    steps, used = rice.decode(memoryview(data)[3 * count :], int(sizes.sum()))
    if used != len(data) - 3 * count:
        raise BitstreamError(f"tables end after {3 * count + used} of {len(data)} bytes")
    pieces = np.split(rice.unzigzag(steps), np.cumsum(sizes)[:-1]) if count else []
    return [
        FrequencyTable(int(first), np.cumsum(piece))
        for first, piece in zip(firsts, pieces, strict=True)
    ]


class TableBank:
    """Tables that several tensors of one file share, each kept once, in order of first use."""

    def __init__(self, tables: list[FrequencyTable] | None = None) -> None:
        self.tables: list[FrequencyTable] = list(tables or [])
        self._places = {table.key: i for i, table in enumerate(self.tables)}

    def place(self, table: FrequencyTable) -> int:
        """Index of the table, which is added if it is new."""
        if table.key not in self._places:
            self._places[table.key] = len(self.tables)
            self.tables.append(table)
        return self._places[table.key]

    def takes(self, table: FrequencyTable) -> bool:
        """Whether the table is kept here or there is room for it."""
        return table.key in self._places or len(self.tables) < MAX_BANK_TABLES

    def to_bytes(self) -> bytes:
        """The bank as stored: a 32-bit count, the tables, CRC32C of both."""
        data = struct.pack("<I", len(self.tables)) + to_bytes(self.tables)
        return data + struct.pack("<I", crc32c.crc32c(data))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> TableBank:
        """Inverse of `to_bytes`.

        Raises:
            BitstreamError: data is not a bank.
        """
        if len(data) < 8:
            raise BitstreamError(f"table bank has {len(data)} bytes, wanted at least 8")
        view = memoryview(data)
        if int.from_bytes(view[-4:], "little") != crc32c.crc32c(view[:-4]):
            raise BitstreamError("checksum of the table bank does not match: it is damaged")
        (count,) = struct.unpack_from("<I", view)
        if count > MAX_BANK_TABLES:
            raise BitstreamError(
                f"table bank has {count} tables, at most {MAX_BANK_TABLES} wanted"
            )
        return cls(from_bytes(view[4:-4], count))
