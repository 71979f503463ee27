r"""Fixed-rate trellis-coded quantisation as in QTIP (Tseng et al., NeurIPS 2024).

A state is the last L bits of the code. Each step shifts kV bits into it and decodes V weights from
it alone, so that any 2^L values are a trellis code of k bits per weight:

.. math:: s_{t+1} = (2^{kV} s_t + b_{t+1}) \bmod 2^L, \qquad \hat x_t = c(s_t)

The codes differ in how c is found: drawn at random (`random_code`, what the random permutation
trellis coder tends to), computed (`one_mad`, `three_inst`) or looked up in a small table after
mixing the bits (`hybrid`). They serve as the study's rivals and in `methods.qtip`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nwc.errors import ConfigError
from nwc.kernels import bitshift_numba

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

STATE_BITS = 16
"""L of QTIP's own settings."""

SEQUENCE = 4096
"""Weights whose path is decided at once. A free start would cost L - kV bits; QTIP saves them by
closing the path to a ring (tail biting), and they are not counted here."""


def random_code(
    dimension: int = 1, *, seed: int = 0, state_bits: int = STATE_BITS
) -> Float32[np.ndarray, "V states"]:
    """A value from the unit normal for every state."""
    shape = (dimension, 1 << state_bits)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def one_mad(state_bits: int = STATE_BITS) -> Float32[np.ndarray, "1 states"]:
    """1MAD (QTIP, Algorithm 1): a linear congruential generator, then the sum of its four bytes.

    Example:
        >>> code = one_mad()
        >>> code.shape, round(float(code.mean()), 2), round(float(code.std()), 2)
        ((1, 65536), -0.0, 1.0)
    """
    mixed = np.arange(1 << state_bits, dtype=np.uint64) * 34038481 + 76625530
    shifts = np.array([[0], [8], [16], [24]], dtype=np.uint64)
    total = (mixed >> shifts & 255).astype(np.float32).sum(0, keepdims=True)
    return (total - np.float32(510)) / np.float32(147.800537)


def three_inst(state_bits: int = STATE_BITS) -> Float32[np.ndarray, "1 states"]:
    """3INST (QTIP, Algorithm 2): the same generator, then the sum of two numbers in FP16.

    Sign, lowest exponent bits and mantissa of each number are random; all other bits are those of
    0.922, so that it is of the size of 1.

    Example:
        >>> code = three_inst()
        >>> code.shape, round(float(code.mean()), 2), round(float(code.std()), 2)
        ((1, 65536), 0.0, 1.24)
    """
    mixed = np.arange(1 << state_bits, dtype=np.uint64) * 89226354 + 64248484
    halves = np.stack([mixed & 0xFFFF, mixed >> 16 & 0xFFFF]).astype(np.uint16)
    numbers = (halves & 0x8FFF ^ 0x3B60).astype(np.uint16).view(np.float16)
    return numbers.sum(0, keepdims=True, dtype=np.float16).astype(np.float32)


def hybrid(
    table: Float32[np.ndarray, "entries 2"], state_bits: int = STATE_BITS
) -> Float32[np.ndarray, "2 states"]:
    """HYB (QTIP, Algorithm 3): a table of 2^Q pairs at s^2 + s, the first of a pair with a sign.

    Args:
        table: pairs, the first of each not negative.
        state_bits: L.

    Raises:
        ConfigError: the size of the table is not a power of two up to 2^15.
    """
    index_bits = max(len(table).bit_length() - 1, 0)
    if len(table) != 1 << index_bits or index_bits > 15:
        raise ConfigError(f"table has {len(table)} pairs, wanted a power of two up to 2^15")
    state = np.arange(1 << state_bits, dtype=np.int64)
    mixed = state * state + state
    pairs = table[mixed >> (15 - index_bits) & (len(table) - 1)].T.copy()
    pairs[0] *= 1 - 2 * (mixed >> 15 & 1)
    return np.ascontiguousarray(pairs, dtype=np.float32)


def quantise(
    x: Float32[np.ndarray, " samples"], code: Float32[np.ndarray, "V states"], bits: int
) -> Float32[np.ndarray, " samples"]:
    """What samples are decoded to along the best path through the trellis.

    Args:
        x: a multiple of `SEQUENCE` samples, or fewer.
        code: value of every state.
        bits: k per weight.

    Raises:
        ConfigError: the samples do not divide into sequences, or kV reaches L.
    """
    dimension, states = code.shape
    length = min(SEQUENCE, len(x))
    if len(x) == 0 or len(x) % length or length % dimension:
        raise ConfigError(f"{len(x)} samples, wanted a multiple of {SEQUENCE}; cut the rest off")
    if not 0 < bits * dimension < states.bit_length() - 1:
        raise ConfigError(
            f"{bits} bits for each of {dimension} weights, wanted fewer in all than the "
            f"{states.bit_length() - 1} bits of a state"
        )
    targets = np.ascontiguousarray(x.reshape(-1, length // dimension, dimension))
    path = np.empty(targets.shape[:2], dtype=np.int64)
    for sequence, taken in zip(targets, path, strict=True):
        bitshift_numba.best_path(sequence, code, bits * dimension, taken)
    return code.T[path].reshape(-1)


def quantise_rings(
    x: Float32[np.ndarray, "sequences samples"], code: Float32[np.ndarray, "V states"], bits: int
) -> Float32[np.ndarray, "sequences samples"]:
    """What sequences are decoded to along good rings: k bits per weight and no more.

    Args:
        x: a sequence in every row.
        code: value of every state.
        bits: k per weight.

    Raises:
        ConfigError: V does not divide the samples, kV reaches L, or a sequence has fewer bits than
            a state.
    """
    dimension, states = code.shape
    sequences, samples = x.shape
    state_bits = states.bit_length() - 1
    if samples % dimension or not 0 < bits * dimension < state_bits <= bits * samples:
        raise ConfigError(
            f"sequences of {samples} weights with {bits} bits each, {dimension} at a time, do not "
            f"close to rings of states of {state_bits} bits; take longer ones or fewer bits"
        )
    targets = np.ascontiguousarray(x.reshape(sequences, samples // dimension, dimension))
    path = np.empty(targets.shape[:2], dtype=np.int64)
    bitshift_numba.ring_paths(targets, code, bits * dimension, path)
    return code.T[path].reshape(sequences, samples)


def best_path_plainly(
    targets: Float32[np.ndarray, "steps V"], values: Float32[np.ndarray, "V states"], bits: int
) -> Int64[np.ndarray, " steps"]:
    """`kernels.bitshift_numba.best_path` written plainly: the oracle of the kernel."""
    count = values.shape[1]
    # Row s: the states that s leads to.
    successors = (np.arange(count)[:, None] << bits | np.arange(1 << bits)) % count
    errors = np.square(targets[:, :, None].astype(np.float64) - values).sum(1)
    total, came = errors[0], []
    for error in errors[1:]:
        reached = np.full(count, np.inf)
        origin = np.zeros(count, dtype=np.int64)
        for state in range(count):
            for to in successors[state]:
                if total[state] < reached[to]:
                    reached[to], origin[to] = total[state], state
        total = reached + error
        came.append(origin)
    path = [int(total.argmin())]
    for origin in reversed(came):
        path.append(int(origin[path[-1]]))
    return np.array(path[::-1], dtype=np.int64)
