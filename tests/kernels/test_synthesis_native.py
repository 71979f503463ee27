"""The compiled synthesis equals torch bit for bit, at every instruction set of this processor."""

import os
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding.tiling import Classes
from nwc.kernels import native_library
from nwc.kernels.synthesis_native import DTYPES, Output, Synthesis, Values

if not native_library.available():
    pytest.skip(native_library.load().reason, allow_module_level=True)

every_level = pytest.mark.parametrize("level", native_library.levels())
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
GUARD = 64


def rectangle(rng, columns, rows, count=40, class_count=16):
    """Integers under classes of columns and rows, and what they are worth: any floats at all."""
    chunks = -(-rows // 16)
    first = -int(rng.integers(0, count))
    integers = rng.integers(first, first + count, (columns, chunks, 16)).astype(np.int16)
    classes = Classes(
        rng.integers(0, class_count // 2, columns).astype(np.uint8),
        rng.integers(0, class_count // 2, (chunks, 16)).astype(np.uint8),
    )
    values = Values(
        first=first,
        values=rng.normal(size=(class_count, count)).astype(np.float32),
        column_scales=np.exp(rng.normal(size=columns)).astype(np.float32),
        row_scales=np.exp(rng.normal(size=rows)).astype(np.float32),
    )
    return integers, classes, values


def in_torch(integers, classes, values, dtype):
    """[columns, rows], as `codec.compressed` has it."""
    places = classes.full().astype(np.int64) * values.values.shape[1] + integers - values.first
    found = torch.from_numpy(values.values).view(-1)[torch.from_numpy(places)].flatten(1)
    found = found[:, : len(values.row_scales)] * torch.from_numpy(values.column_scales)[:, None]
    return (found * torch.from_numpy(values.row_scales)).to(getattr(torch, dtype))


def in_c(level, integers, classes, values, dtype, by_column, offset=0):
    """The same by the kernel, in the middle of guarded memory; [columns, rows]."""
    shape = len(values.column_scales), len(values.row_scales)
    size = shape[0] * shape[1]
    whole = torch.full((size + 2 * GUARD + offset,), 7.0, dtype=getattr(torch, dtype))
    start = GUARD + offset
    output = Output(
        address=whole.data_ptr() + start * whole.element_size(),
        count=size,
        dtype=dtype,
        stride=shape[1] if by_column else shape[0],
        by_column=by_column,
    )
    with mock.patch.dict(os.environ, NWC_NATIVE_LEVEL=level):
        Synthesis(values, output).write(integers, classes, 0, 0)
    assert (whole[:start] == 7).all()
    assert (whole[start + size :] == 7).all()
    found = whole[start : start + size]
    return found.view(shape) if by_column else found.view(shape[1], shape[0]).T


def bits(tensor):
    """As integers, every NaN the same: its payload says nothing."""
    tensor = torch.where(tensor.isnan(), torch.tensor(float("nan"), dtype=tensor.dtype), tensor)
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@every_level
@every_dtype
@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (15, 17), (33, 50), (64, 64), (50, 160)])
def test_equals_torch(level, dtype, by_column, shape):
    rng = np.random.default_rng(shape)
    job = rectangle(rng, *shape)
    expected = in_torch(*job, dtype)
    for offset in (0, 1):  # whole lines of the cache, and none
        found = in_c(level, *job, dtype, by_column, offset)
        assert torch.equal(bits(found), bits(expected))


@every_level
@every_dtype
@pytest.mark.parametrize("by_column", [True, False])
def test_every_kind_of_float_is_rounded_as_torch_rounds_it(level, dtype, by_column):
    rng = np.random.default_rng(0)
    integers, classes, values = rectangle(rng, 48, 128, count=1000)
    patterns = rng.integers(0, 2**32, values.values.shape, dtype=np.uint32)
    # Most of them near what 16 bits can hold, ties among them.
    near = (rng.integers(95, 145, patterns.shape, dtype=np.uint32) << 23) | (patterns & 0x807FF000)
    patterns[:12] = near[:12]
    patterns[0, :8] = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x477FF000, 0x33000000]
    values = Values(
        first=values.first,
        values=patterns.view(np.float32),
        column_scales=np.ones(48, np.float32),
        row_scales=np.ones(128, np.float32),
    )
    expected = in_torch(integers, classes, values, dtype)
    found = in_c(level, integers, classes, values, dtype, by_column)
    assert torch.equal(bits(found), bits(expected))


@every_level
@every_dtype
def test_integers_times_a_step_need_no_lookup(level, dtype):
    rng = np.random.default_rng(1)
    integers, classes, values = rectangle(rng, 40, 90, class_count=6)
    steps = np.exp(rng.normal(size=6)).astype(np.float32)
    each = np.arange(values.first, values.first + 40, dtype=np.float32)
    linear = Values(
        first=values.first,
        values=each * steps[:, None],
        column_scales=values.column_scales,
        row_scales=values.row_scales,
    )
    found = linear.steps()
    assert (found is None) == (values.first + 40 <= 1)
    if found is not None:
        assert np.array_equal(found[:6], steps)
    assert values.steps() is None
    for by_column in (True, False):
        assert torch.equal(
            bits(in_c(level, integers, classes, linear, dtype, by_column)),
            bits(in_torch(integers, classes, linear, dtype)),
        )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from(native_library.levels()),
)
def test_equals_torch_on_any_rectangle(seed, columns, rows, dtype, by_column, level):
    job = rectangle(np.random.default_rng(seed), columns, rows)
    expected = in_torch(*job, dtype)
    assert torch.equal(bits(in_c(level, *job, dtype, by_column)), bits(expected))
