"""100,000 damaged golden streams: each gives its symbols or a BitstreamError, soon and in little
memory.

Raw mutants keep their checksums, so a decoder must never give wrong symbols. Resealed mutants have
checksums made to fit, which lets them reach the deepest checks; a few are valid streams of their
own. The seed is fixed: a failure names the mutant by its chunk and number.
"""

import random
import struct
import time
import tracemalloc
from itertools import cycle
from typing import NamedTuple

import numpy as np
import pytest
import torch

from nwc.codec.compressed import CompressedTensor
from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding.bitstream import Bitstream
from nwc.coding.container import MAX_CLASSES, Section
from nwc.coding.rans import LANES
from nwc.coding.tables import TableBank
from nwc.errors import BitstreamError
from nwc.kernels import native_library, rans_native, rans_numba

CHUNKS, RAW, RESEALED = 20, 2400, 2500
BANKS = 2000
assert CHUNKS * (RAW + RESEALED) + BANKS == 100_000

SECONDS = 1.0
MEMORY_FACTOR = 10
BYTES_PER_WEIGHT = 4
FIXED_MEMORY = 2**21
"""What any decoder takes: one tile of 2^18 symbols, and the lookups of a few tables."""

# None: the fastest, which decodes and restores weights in C where that was built. An odd number,
# for every fourth mutant is decoded to weights.
DECODERS = (rans_numba.decode_tile, *([None, None] if native_library.available() else []))

LARGE = ("channels", "shared")
"""Streams of more than 32 K weights: one mutant in twenty."""

HEAD_FIELDS = {
    "rows": "I",
    "columns": "I",
    "tile_chunks": "I",
    "tile_columns": "I",
    "classes": "B",
    "flags": "B",
    "section_count": "H",
    "words": "I",
    "minor": "B",
}


class Original(NamedTuple):
    """A golden stream and what comes out of it."""

    data: bytes
    bank: TableBank | None
    symbols: np.ndarray
    weight: torch.Tensor


@pytest.fixture(scope="module")
def codec():
    return WeightCodec(CodecConfig(kind="identity", importance=(1.0,) * MAX_CLASSES))


@pytest.fixture(scope="module")
def originals(golden, codec):
    """Decoded once, which also compiles the kernel before anything is timed."""
    return {
        name: Original(
            data,
            bank,
            Bitstream(data, bank).symbols(rans_numba.decode_tile),
            CompressedTensor(data, codec, bank).weight(decoder=rans_numba.decode_tile),
        )
        for name, (data, bank) in golden.items()
    }


# Mutations of bytes, whatever they mean


def flip_bits(rng, data):
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def truncate(rng, data):
    return data[: rng.randrange(len(data))]


def cut_out(rng, data):
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 80)]
    return data


def insert(rng, data):
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.randint(1, 80))
    return data


def overwrite(rng, data):
    start, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 72))
    size = min(size, len(data) - start)
    fill = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80", None))
    data[start : start + size] = rng.randbytes(size) if fill is None else fill * size
    return data


def huge_number(rng, data):
    start = 4 * rng.randrange(len(data) // 4)
    if rng.random() < 0.7:
        start = 4 * rng.randrange(9)  # the head
    data[start : start + 4] = struct.pack("<I", any_number(rng, 32))
    return data


def section_length(rng, data):
    at = 36 + 8 * rng.randrange(8) + 4
    data[at : at + 4] = struct.pack("<I", any_number(rng, 32))
    return data


BYTE_MUTATIONS = (
    flip_bits,
    flip_bits,
    truncate,
    cut_out,
    insert,
    overwrite,
    huge_number,
    section_length,
)


def any_number(rng, bits):
    """Near 0, near a power of two, or anywhere."""
    limit = (1 << bits) - 1
    near = rng.choice((0, 1 << rng.randrange(bits + 1), limit))
    value = near + rng.randint(-3, 3) if rng.random() < 0.8 else rng.getrandbits(bits)
    return min(max(value, 0), limit)


def mutate_bytes(rng, data, other):
    """One or two mutations; one in eight is a splice with another stream."""
    if rng.random() < 0.125:
        cut = rng.randrange(1, len(data))
        resume = cut if rng.random() < 0.5 else rng.randrange(len(other))
        return bytes(data[:cut] + other[min(resume, len(other) - 1) :])
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        if len(mutant) >= 4:
            mutant = rng.choice(BYTE_MUTATIONS)(rng, mutant)
    return bytes(mutant)


# Mutations of parts: the rest of the structure stays right, so that the deep checks are reached


def mutate_head(rng, parts, _):
    field = rng.choice(list(HEAD_FIELDS))
    limit = {"I": 2**32, "H": 2**16, "B": 2**8}[HEAD_FIELDS[field]]
    if rng.random() < 0.6:
        parts.head[field] = (parts.head[field] + rng.randint(-3, 3)) % limit
    else:
        parts.head[field] = any_number(rng, limit.bit_length() - 1)


def mutate_shape(rng, parts, _):
    """Another matrix and other tiles, of the same number if it is lucky."""
    for field in ("rows", "columns", "tile_chunks", "tile_columns"):
        if rng.random() < 0.5:
            factor = rng.choice((2, 3, 16, 1000, 16384))
            parts.head[field] = min(parts.head[field] * factor, 2**32 - 1)


def mutate_section(rng, parts, _):
    """Damage inside one section, or another size that the section table knows of."""
    _, data = parts.sections[rng.randrange(len(parts.sections))]
    if data:
        data[:] = rng.choice((flip_bits, flip_bits, overwrite, cut_out, truncate))(rng, data)
    elif rng.random() < 0.5:
        data.extend(rng.randbytes(rng.randint(1, 40)))


def mutate_length(rng, parts, _):
    i = rng.randrange(len(parts.sections))
    parts.lengths[i] = any_number(rng, 32)
    if rng.random() < 0.5:
        parts.lengths[i] = max(0, len(parts.sections[i][1]) + rng.randint(-4, 4))


def mutate_index(rng, parts, _):
    """Word counts that still sum to the payload's, or other states."""
    index = next((data for kind, data in parts.sections if kind == Section.INDEX), b"")
    tiles = len(index) // 72
    if not tiles:
        return
    if rng.random() < 0.5 and tiles > 1:
        give, take = 72 * rng.randrange(tiles), 72 * rng.randrange(tiles)
        words = rng.randint(0, struct.unpack_from("<I", index, give)[0])
        for at, change in ((give, -words), (take, words)):
            value = struct.unpack_from("<I", index, at)[0] + change
            struct.pack_into("<I", index, at, value % 2**32)
    else:
        at = 72 * rng.randrange(tiles) + 8 + 4 * rng.randrange(LANES)
        struct.pack_into("<I", index, at, any_number(rng, 32))


def mutate_payload(rng, parts, _):
    if len(parts.payload) >= 2:
        parts.payload[:] = rng.choice((flip_bits, overwrite))(rng, parts.payload)


def mutate_payload_size(rng, parts, _):
    """Words more or less, and a head and an index that agree."""
    change = rng.randint(-min(20, len(parts.payload) // 2), 20)
    if change < 0:
        del parts.payload[2 * change :]
    parts.payload.extend(rng.randbytes(2 * max(change, 0)))
    parts.head["words"] = (parts.head["words"] + change) % 2**32
    index = next((data for kind, data in parts.sections if kind == Section.INDEX), b"")
    if len(index) >= 72:
        words = struct.unpack_from("<I", index, len(index) - 72)[0] + change
        struct.pack_into("<I", index, len(index) - 72, words % 2**32)


def swap_section(rng, parts, other):
    """A section of another stream, its kind missing, repeated or new."""
    i, donor = rng.randrange(len(parts.sections)), rng.choice(other.sections)
    how = rng.randrange(4)
    if how == 0:
        parts.sections[i] = (parts.sections[i][0], bytearray(donor[1]))
    elif how == 1 and parts.head["section_count"] < 2**16 - 1:
        parts.add(*donor)
    elif how == 2 and parts.head["section_count"] < 2**16 - 1:
        parts.add(any_number(rng, 16), rng.randbytes(rng.randrange(20)))
    elif how == 3 and len(parts.sections) > 1 and parts.head["section_count"]:
        parts.remove(parts.sections[i][0])


PART_MUTATIONS = (
    mutate_head,
    mutate_shape,
    mutate_section,
    mutate_section,
    mutate_section,
    mutate_length,
    mutate_index,
    mutate_payload,
    mutate_payload_size,
    swap_section,
)


def mutate_parts(rng, data, other, forge):
    parts, donor = forge(data), forge(other)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(PART_MUTATIONS)(rng, parts, donor)
    return parts.raw()


# What must hold of every mutant


class Judge:
    """Decodes mutants and keeps count of how they ended."""

    def __init__(self, codec):
        self.codec = codec
        self.refused_early = self.refused_late = self.decoded = 0
        self.decoders = cycle(DECODERS)

    def check(self, mutant, bank, weights, size, accepted):
        """Decode all symbols, or all weights.

        Args:
            size: weights of the true tensor, padding included.
            accepted: what may come out; None for anything.
        """
        out, stream = None, None
        decoder = next(self.decoders)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        start = time.thread_time()
        try:
            if weights:
                tensor = CompressedTensor(mutant, self.codec, bank)
                stream = tensor.stream
                out = tensor.weight(decoder=decoder)
            else:
                stream = Bitstream(mutant, bank)
                out = stream.symbols(decoder or rans_native.decode_tile)
        except BitstreamError:
            if stream is None:
                self.refused_early += 1
            else:
                self.refused_late += 1
        else:
            self.decoded += 1
        seconds = time.thread_time() - start
        peak = tracemalloc.get_traced_memory()[1] - before
        assert seconds < SECONDS
        assert peak <= self._memory_limit(stream, size)
        if out is None:
            return
        head = stream.head
        if weights:
            assert out.shape == tensor.shape
        else:
            assert out.shape == (head.columns, head.chunks, LANES)
        if accepted is not None:
            assert any(np.array_equal(out, each) for each in accepted)

    @staticmethod
    def _memory_limit(stream, size):
        """Ten times the tensor in FP32: the true one, or the one a checked front describes."""
        if stream is not None:
            size = max(size, stream.head.columns * stream.head.chunks * LANES)
        return MEMORY_FACTOR * BYTES_PER_WEIGHT * size + FIXED_MEMORY


@pytest.fixture
def judge(codec):
    tracemalloc.start()
    yield Judge(codec)
    tracemalloc.stop()


def draw_pair(rng, originals):
    small = [name for name in originals if name not in LARGE]
    name = rng.choice(LARGE if rng.random() < 0.05 else small)
    return name, rng.choice(small)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_raw_mutants_give_the_golden_symbols_or_an_error(chunk, originals, judge):
    rng = random.Random(f"raw {chunk}")
    for i in range(RAW):
        name, other = (originals[key] for key in draw_pair(rng, originals))
        mutant = mutate_bytes(rng, name.data, other.data)
        weights = i % 4 == 0
        # A splice may by chance be one of its two parents, whole.
        accepted = [each.weight if weights else each.symbols for each in (name, other)]
        judge.check(mutant, name.bank, weights, name.symbols.size, accepted)
    assert judge.refused_late > 0.05 * RAW  # damage of the payload alone
    assert judge.refused_early > 0.8 * RAW


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_resealed_mutants_give_symbols_or_an_error(chunk, originals, judge, forge, reseal):
    rng = random.Random(f"resealed {chunk}")
    for i in range(RESEALED):
        name, other = (originals[key] for key in draw_pair(rng, originals))
        if rng.random() < 0.25:
            mutant = mutate_bytes(rng, name.data, other.data)
        else:
            mutant = mutate_parts(rng, name.data, other.data, forge)
        judge.check(reseal(mutant), name.bank, i % 4 == 0, name.symbols.size, None)
    # The mutants are worth their time only if many get past the front, and some to the end.
    assert judge.refused_late > 0.1 * RESEALED
    assert judge.decoded > 0.02 * RESEALED


def test_damaged_banks_are_banks_or_an_error(originals):
    rng = random.Random("bank")
    original = originals["bank"]
    data = original.bank.to_bytes()
    refused = 0
    for _ in range(BANKS):
        try:
            bank = TableBank.from_bytes(mutate_bytes(rng, data, original.data))
            Bitstream(original.data, bank).symbols(rans_numba.decode_tile)
        except BitstreamError:
            refused += 1
    assert refused > BANKS // 2
