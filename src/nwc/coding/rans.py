"""Interleaved rANS with 16 lanes, written plainly: the oracle of every kernel.

32-bit states, lower bound 2^16, 16-bit words, 12-bit probabilities. One step codes the 16 symbols
of a chunk, one a lane; the lanes draw from one stream of words that is read forwards, in lane
order. Encoding starts every lane at exactly 2^16, so decoding must end there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nwc.coding.tables import PRECISION, TOTAL, FrequencyTable
from nwc.errors import BitstreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANES = 16
LOWER = 1 << 16
WORD = 16


def lookup(tables: list[FrequencyTable]) -> NDArray[np.uint32]:
    """Decoding tables [tables, 4096]: symbol << 24 | frequency - 1 << 12 | slot - start.

    The symbol counts from the table's first; slot - start is what the state gains.
    """
    packed = np.zeros((len(tables), TOTAL), dtype=np.uint32)
    for row, table in zip(packed, tables, strict=True):
        symbol = np.repeat(np.arange(len(table)), table.frequencies)
        offset = np.arange(TOTAL) - table.starts()[symbol]
        row[:] = symbol << 24 | (table.frequencies[symbol] - 1) << 12 | offset
    return packed


def encode(
    symbols: NDArray[np.int64], choice: NDArray[np.int64], tables: list[FrequencyTable]
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Code symbols [steps, 16], the table of each lane given by choice [steps, 16].

    Every symbol must lie in its table with a positive frequency.

    Returns:
        The words in reading order and the states [16] that decoding starts from.
    """
    state = [LOWER] * LANES
    words: list[int] = []
    starts = [table.starts() for table in tables]
    for step in range(len(symbols) - 1, -1, -1):
        for lane in range(LANES - 1, -1, -1):
            table = tables[choice[step, lane]]
            place = int(symbols[step, lane]) - table.first
            frequency = int(table.frequencies[place])
            start = int(starts[choice[step, lane]][place])
            x = state[lane]
            if x >= frequency << (32 - PRECISION):
                words.append(x & 0xFFFF)
                x >>= WORD
            state[lane] = (x // frequency << PRECISION) + x % frequency + start
    return np.array(words[::-1], dtype=np.uint16), np.array(state, dtype=np.uint32)


def decode(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    choice: NDArray[np.int64],
    tables: list[FrequencyTable],
) -> NDArray[np.int64]:
    """Decode the symbols [steps, 16] of `encode`.

    Raises:
        BitstreamError: too few or too many words, or a lane that does not end at 2^16.
    """
    packed = lookup(tables)
    state = [int(x) for x in states]
    symbols = np.zeros(choice.shape, dtype=np.int64)
    position = 0
    for step in range(len(choice)):
        for lane in range(LANES):
            x = state[lane]
            entry = int(packed[choice[step, lane], x & (TOTAL - 1)])
            frequency = ((entry >> 12) & (TOTAL - 1)) + 1
            x = frequency * (x >> PRECISION) + (entry & (TOTAL - 1))
            if x < LOWER:
                if position == len(words):
                    raise BitstreamError(
                        f"lane {lane} wants a word at step {step}, the tile has {len(words)}"
                    )
                x = x << WORD | int(words[position])
                position += 1
            state[lane] = x
            symbols[step, lane] = tables[choice[step, lane]].first + (entry >> 24)
    check_end(np.array(state, dtype=np.uint32), position, len(words))
    return symbols


def check_end(states: NDArray[np.uint32], position: int, words: int) -> None:
    """Raise BitstreamError unless all words were read and all lanes ended where encoding began."""
    if position != words:
        raise BitstreamError(f"tile ends after word {position}, its index says {words}")
    if (states != LOWER).any():
        lane = int((states != LOWER).argmax())
        raise BitstreamError(f"lane {lane} ends at state {int(states[lane])}, wanted {LOWER}")
