"""The state machines of entropy-coded trellis-coded quantisation (Fischer and Wang, 1992).

The codebook is the integers. From state s only integers of parity s & 1 are allowed, each coded
as q = (n - parity) / 2; the next state follows from the parity and from q & 1. The allowed subsets
are twice as coarse as the codebook, yet a path through the trellis comes closer to a source than
the coarse lattice does. The convolutional codes are Ungerboeck's for one dimension (IEEE Trans.
Inf. Theory 28, 1982, Table I).
"""

from __future__ import annotations

from typing import NamedTuple


class Trellis(NamedTuple):
    """One code.

    Args:
        states: their number, a power of two.
        on_parity: what the parity does to the next state: h0 without its last bit.
        on_bit: what q & 1 does to it: h1 without its last bit.

    Example:
        >>> trellis = TRELLISES[8]
        >>> trellis.step(0, 0), trellis.step(0, 1), trellis.step(2, 1), trellis.step(1, 0)
        (0, 2, 3, 5)
    """

    states: int
    on_parity: int
    on_bit: int

    def step(self, state: int, symbol: int) -> int:
        """The state after coding `symbol` in `state`."""
        return state >> 1 ^ (state & 1) * self.on_parity ^ (symbol & 1) * self.on_bit


TRELLISES = {
    4: Trellis(4, 0o5 >> 1, 0o2 >> 1),
    8: Trellis(8, 0o13 >> 1, 0o04 >> 1),
    32: Trellis(32, 0o45 >> 1, 0o10 >> 1),
}
"""By the number of states; parity-check polynomials h0, h1 in octal."""
