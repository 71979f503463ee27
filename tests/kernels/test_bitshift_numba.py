import itertools

import numpy as np
import pytest

from nwc.kernels.bitshift_numba import best_path, ring_paths
from nwc.quantizers.qtip import best_path_plainly


def cost(path, targets, values):
    return float(np.square(targets - values.T[path]).sum())


@pytest.mark.parametrize("steps", [1, 2, 7, 63])
@pytest.mark.parametrize(("state_bits", "bits"), [(4, 1), (6, 2), (6, 5), (8, 3), (9, 3)])
@pytest.mark.parametrize("dimension", [1, 2])
def test_equals_the_oracle(steps, state_bits, bits, dimension):
    rng = np.random.default_rng(steps)
    values = rng.standard_normal((dimension, 1 << state_bits), dtype=np.float32)
    targets = rng.standard_normal((steps, dimension), dtype=np.float32)
    found = np.full(steps, -99)
    best_path(targets, values, bits, found)
    plain = best_path_plainly(targets, values, bits)
    assert cost(found, targets, values) == pytest.approx(cost(plain, targets, values), rel=1e-6)
    assert np.array_equal(found[1:] >> bits, found[:-1] % (1 << state_bits - bits))


def test_no_path_at_all_is_better():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 8), dtype=np.float32)
    targets = rng.standard_normal((4, 1), dtype=np.float32)
    found = np.empty(4, dtype=np.int64)
    best_path(targets, values, 1, found)
    cheapest = np.inf
    for code in range(2**6):
        path = np.array([code >> 3 - t & 7 for t in range(4)])
        cheapest = min(cheapest, cost(path, targets, values))
    assert cost(found, targets, values) == pytest.approx(cheapest, rel=1e-6)


def test_a_sequence_that_the_code_can_say_is_said_exactly():
    rng = np.random.default_rng(1)
    values = rng.standard_normal((2, 256), dtype=np.float32)
    states = [3]
    for new in rng.integers(0, 4, 99):
        states.append((states[-1] << 2 | int(new)) % 256)
    found = np.empty(100, dtype=np.int64)
    best_path(values.T[states], values, 2, found)
    assert cost(found, values.T[states], values) == 0
    assert found.tolist() == states


def test_arguments_are_left_alone():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((1, 16), dtype=np.float32)
    targets = rng.standard_normal((9, 1), dtype=np.float32)
    before = values.copy(), targets.copy()
    best_path(targets, values, 2, np.empty(9, dtype=np.int64))
    assert np.array_equal(values, before[0])
    assert np.array_equal(targets, before[1])


@pytest.mark.parametrize(("steps", "bits", "dimension"), [(10, 1, 1), (5, 2, 2), (10, 1, 2)])
def test_rings_close_and_cost_little_more_than_the_best(steps, bits, dimension):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((dimension, 16), dtype=np.float32)
    targets = rng.standard_normal((8, steps, dimension), dtype=np.float32)
    found = np.full((8, steps), -99)
    ring_paths(targets, values, bits, found)
    following = np.roll(found, -1, axis=1)
    assert np.array_equal(following >> bits, found % (16 >> bits))
    total, least = 0.0, 0.0
    for sequence, path in zip(targets, found, strict=True):
        # A ring is all its new bits: every one of them is tried.
        rings = []
        for new in itertools.product(range(1 << bits), repeat=steps):
            state, ring = 0, []
            for piece in new + new:
                state = (state << bits | piece) % 16
                ring.append(state)
            rings.append(ring[steps:])
        total += cost(path, sequence, values)
        least += min(cost(np.array(ring), sequence, values) for ring in rings)
    assert least * (1 - 1e-6) <= total <= 1.25 * least


@pytest.mark.parametrize(("state_bits", "bits"), [(6, 1), (6, 4), (8, 4), (8, 6)])
def test_a_ring_that_the_code_can_say_is_found(state_bits, bits):
    rng = np.random.default_rng(4)
    count = 1 << state_bits
    values = rng.standard_normal((1, count), dtype=np.float32)
    new = rng.integers(0, 1 << bits, 80)
    states, state = [], 0
    for piece in np.concatenate([new, new]):
        state = (state << bits | int(piece)) % count
        states.append(state)
    ring = np.array(states[80:])
    found = np.empty((1, 80), dtype=np.int64)
    ring_paths(values.T[ring][None], values, bits, found)
    assert np.array_equal(found[0], ring)
