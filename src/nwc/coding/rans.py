"""Interleaved rANS with 16 lanes, written plainly: the oracle of every kernel.

32-bit states, lower bound 2^16, 16-bit words, 12-bit probabilities. One step codes the 16 symbols
of a chunk, one a lane; the lanes draw from one stream of words that is read forwards, in lane
order. Encoding starts every lane at exactly 2^16, so decoding must end there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nwc.coding.tables import PRECISION, TOTAL, FrequencyTable
from nwc.coding.trellis import Trellis
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
    lanes = _Decoder(words, states, tables)
    symbols = [lanes.step(row) for row in choice]
    lanes.check_end()
    return np.array(symbols, dtype=np.int64).reshape(choice.shape)


def decode_trellis(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    choice: NDArray[np.int64],
    tables: list[FrequencyTable],
    trellis: Trellis,
) -> NDArray[np.int64]:
    """Decode integers [steps, 16] whose tables depend on the trellis's state, which starts at 0.

    Args:
        words: as for `decode`.
        states: as for `decode`.
        tables: as for `decode`.
        choice: [steps, 16, 2], the table of each lane for both parities.
        trellis: the state machine.

    Raises:
        BitstreamError: as `decode`.
    """
    lanes = _Decoder(words, states, tables)
    path = [0] * LANES
    integers = np.zeros(choice.shape[:2], dtype=np.int64)
    for step, pair in enumerate(choice):
        parities = [state & 1 for state in path]
        symbols = lanes.step(pair[range(LANES), parities])
        for lane, (symbol, parity) in enumerate(zip(symbols, parities, strict=True)):
            integers[step, lane] = 2 * symbol + parity
            path[lane] = trellis.step(path[lane], symbol)
    lanes.check_end()
    return integers


class _Decoder:
    """Sixteen lanes that read one word stream."""

    def __init__(
        self,
        words: NDArray[np.uint16],
        states: NDArray[np.uint32],
        tables: list[FrequencyTable],
    ) -> None:
        self.words = words
        self.state = [int(x) for x in states]
        self.first = [table.first for table in tables]
        self.packed = lookup(tables)
        self.steps = self.position = 0

    def step(self, choice: NDArray[np.int64]) -> list[int]:
        """The next symbol of every lane, from the tables that choice [16] names."""
        symbols = []
        for lane in range(LANES):
            x = self.state[lane]
            entry = int(self.packed[choice[lane], x & (TOTAL - 1)])
            frequency = ((entry >> 12) & (TOTAL - 1)) + 1
            x = frequency * (x >> PRECISION) + (entry & (TOTAL - 1))
            if x < LOWER:
                if self.position == len(self.words):
                    raise BitstreamError(
                        f"lane {lane} wants a word at step {self.steps}, the tile has "
                        f"{len(self.words)}"
                    )
                x = x << WORD | int(self.words[self.position])
                self.position += 1
            self.state[lane] = x
            symbols.append(self.first[choice[lane]] + (entry >> 24))
        self.steps += 1
        return symbols

    def check_end(self) -> None:
        """See the function of this name."""
        check_end(np.array(self.state, dtype=np.uint32), self.position, len(self.words))


def check_end(states: NDArray[np.uint32], position: int, words: int) -> None:
    """Raise BitstreamError unless all words were read and all lanes ended where encoding began."""
    if position != words:
        raise BitstreamError(f"tile ends after word {position}, its index says {words}")
    if (states != LOWER).any():
        lane = int((states != LOWER).argmax())
        raise BitstreamError(f"lane {lane} ends at state {int(states[lane])}, wanted {LOWER}")
