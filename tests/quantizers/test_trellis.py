import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding.trellis import TRELLISES
from nwc.kernels.viterbi_numba import FREE
from nwc.quantizers.trellis import (
    Codebook,
    Column,
    Segments,
    decide,
    decide_plainly,
    price,
    restore,
)

EVERY = [None, *TRELLISES.values()]


def codebook(rng, trellis, layers=1, classes=1, reach=64, rate=0.1):
    """Values near multiples of the step, pulled towards zero, and lengths that grow outwards."""
    parities = 1 if trellis is None else 2
    steps = rng.uniform(0.5, 2, (layers, classes)).astype(np.float32)
    integers = np.arange(-reach, reach) / parities
    pull = 0.2 * np.tanh(integers) * rng.uniform(0, 1, (layers, classes, 1))
    values = ((integers - pull) * steps[..., None]).astype(np.float32)
    symbols = np.abs(np.arange(-20, 21))
    costs = rate * (1 + symbols * rng.uniform(0.2, 2, (layers, classes, parities, 1)))
    return Codebook(
        steps=steps,
        values=values,
        first=-reach,
        costs=costs,
        first_symbol=-20,
        trellis=trellis,
    )


def problem(rng, book, segments, spread=3.0, ends=None):
    rows = 16 * int(segments.starts[-1])
    states = 1 if book.trellis is None else book.trellis.states
    classes = book.steps.shape[1]
    row_scales = rng.uniform(0.5, 2, rows).astype(np.float32)
    row_scales[rng.random(rows) < 0.05] = 0
    shape = (len(segments), 16)
    return Column(
        targets=(rng.normal(size=rows) * spread).astype(np.float32),
        scales=rng.uniform(0.5, 2, len(segments)).astype(np.float32),
        row_scales=row_scales,
        classes=rng.integers(0, (classes + 1) // 2, len(segments)),
        row_classes=rng.integers(0, classes // 2 + 1, rows).astype(np.uint8),
        weights=rng.uniform(0.5, 2, len(segments)),
        path=rng.integers(0, states, shape).astype(np.int8),
        ends=np.full(shape, FREE, np.int8) if ends is None else ends,
    )


def follow(integers, column, segments, book):
    """States that the integers lead to; fails where they leave the trellis."""
    lanes = integers.reshape(-1, 16)
    path = column.path.astype(int)
    for segment in range(len(segments)):
        for chunk in range(segments.starts[segment], segments.starts[segment + 1]):
            for lane in range(16):
                n = int(lanes[chunk, lane])
                if book.trellis is not None:
                    assert n & 1 == path[segment, lane] & 1
                    path[segment, lane] = book.trellis.step(path[segment, lane], n >> 1)
    return path


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(EVERY), st.floats(0, 0.5))
def test_equals_the_plain_algorithm(seed, trellis, rate):
    rng = np.random.default_rng(seed)
    segments = Segments.of([3, 4], [2, 4])
    book = codebook(rng, trellis, layers=2, classes=3, rate=rate)
    column = problem(rng, book, segments, spread=float(rng.choice([0.3, 3, 200])))
    found, plain = decide(column, segments, book), decide_plainly(column, segments, book)
    costs = [price(each.integers, column, segments, book) for each in (found, plain)]
    np.testing.assert_allclose(costs[0], costs[1], rtol=1e-6)
    assert np.array_equal(follow(found.integers, column, segments, book), found.path)
    assert np.array_equal(found.restored, restore(found.integers, column, segments, book))
    np.testing.assert_allclose(plain.restored, restore(plain.integers, column, segments, book))


@pytest.mark.parametrize("trellis", EVERY)
def test_no_path_at_all_is_better(trellis):
    rng = np.random.default_rng(5)
    segments = Segments.of([4], [4])
    book = codebook(rng, trellis, reach=16)
    column = problem(rng, book, segments, spread=0.8)
    found = price(decide(column, segments, book).integers, column, segments, book)[0]
    start = column.path[0]
    cheapest = np.full(16, math.inf)
    for options in itertools.product(range(-3, 4), repeat=4):
        integers = np.repeat(options, 16).astype(np.int16)
        legal = np.ones(16, bool)
        if trellis is not None:
            for lane in range(16):
                state = int(start[lane])
                for n in options:
                    legal[lane] &= n & 1 == state & 1
                    state = trellis.step(state, n >> 1)
        costs = price(integers, column, segments, book)[0]
        cheapest = np.minimum(cheapest, np.where(legal, costs, math.inf))
    assert (found <= cheapest + 1e-9).all()
    assert np.isfinite(cheapest).all()


def test_without_a_price_on_bits_the_nearest_value_is_taken():
    rng = np.random.default_rng(0)
    segments = Segments.of([50], [50])
    book = codebook(rng, None, rate=0.0)
    column = problem(rng, book, segments)
    values = book.values[0, 0] * column.scales[0]
    alive = column.row_scales > 0
    distance = np.abs(column.targets[:, None] - values * column.row_scales[:, None])
    found = decide(column, segments, book)
    best = np.abs(column.targets - found.restored)
    np.testing.assert_allclose(best[alive], distance.min(1)[alive], atol=1e-5)


@pytest.mark.parametrize("trellis", TRELLISES.values())
def test_a_wanted_end_is_reached(trellis):
    rng = np.random.default_rng(1)
    segments = Segments.of([9], [9])
    book = codebook(rng, trellis)
    ends = rng.integers(0, trellis.states, (1, 16)).astype(np.int8)
    column = problem(rng, book, segments, ends=ends)
    found = decide(column, segments, book)
    assert np.array_equal(found.path, ends)
    assert np.array_equal(follow(found.integers, column, segments, book), ends)


def test_arguments_are_left_alone():
    rng = np.random.default_rng(2)
    segments = Segments.of([5], [5])
    book = codebook(rng, TRELLISES[8])
    column = problem(rng, book, segments)
    for array in (column.targets, column.path, column.ends, book.values, book.costs):
        array.setflags(write=False)
    decide(column, segments, book)


def gap(states, bits, count=2**17):
    """Entropy of Gaussian samples minus what their error would need at least."""
    rng = np.random.default_rng(3)
    trellis = TRELLISES.get(states)
    parities = 1 if trellis is None else 2
    step = math.sqrt(2 * math.pi * math.e) / 2**bits
    reach = parities * 16 * math.ceil(8 / step / 16)
    integers = np.arange(-reach, reach) / parities
    density = np.exp(-0.5 * (np.arange(-128, 128)[None] + np.arange(parities)[:, None] / 2) ** 2
                     * step**2)  # fmt: skip
    lengths = -np.log2(density / density.sum(1, keepdims=True) + 1e-12)
    book = Codebook(
        steps=np.full((1, 1), step, np.float32),
        values=(integers * step).astype(np.float32)[None, None],
        first=-reach,
        costs=0.1 * lengths[None, None],
        first_symbol=-128,
        trellis=trellis,
    )
    segments = Segments.of([count // 16], [count // 16])
    x = rng.normal(size=count).astype(np.float32)
    zeros = np.zeros((1, 16), np.int8)
    column = Column(
        targets=x,
        scales=np.ones(1, np.float32),
        row_scales=np.ones(count, np.float32),
        classes=np.zeros(1, np.int64),
        row_classes=np.zeros(count, np.uint8),
        weights=np.ones(1),
        path=zeros,
        ends=np.full_like(zeros, FREE),
    )
    found = decide(column, segments, book)
    symbols, parity = found.integers >> (parities - 1), found.integers & (parities - 1)
    entropy = 0.0
    for p in range(parities):
        counts = np.unique(symbols[parity == p], return_counts=True)[1]
        entropy += float((counts * -np.log2(counts / counts.sum())).sum())
    mse = float(np.square(x - found.restored).mean())
    return entropy / count + 0.5 * math.log2(mse)


@pytest.mark.parametrize("bits", [3.0, 5.0])
def test_gap_to_the_shannon_bound(bits):
    # Figures of the design: 0.254 for scalar quantisation, 0.091, 0.075 and 0.055 bit.
    gaps = {states: gap(states, bits) for states in (0, 4, 8, 32)}
    assert gaps[0] == pytest.approx(0.25, abs=0.015)
    assert gaps[4] == pytest.approx(0.091, abs=0.015)
    assert gaps[8] == pytest.approx(0.075, abs=0.015)
    assert gaps[32] == pytest.approx(0.055, abs=0.015)
