"""From integers to weights in C, for codecs whose value of an integer can be looked up.

The same products in the same order as `codec.compressed` has them in torch, so the same bits: the
value of (class, integer), times the scale of the column, times that of the row, rounded once to
the type of the output.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nwc.coding.tiling import Classes
from nwc.kernels import native_library

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = ("float32", "bfloat16", "float16")
"""Of the output, by the numbers that the library gives them."""

_CLASSES = 16


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the weights of a matrix go.

    Args:
        address: of the first weight.
        count: weights.
        dtype: one of `DTYPES`.
        stride: elements from one row to the next, or from one column to the next.
        by_column: columns are contiguous, not rows: the matrix is stored transposed.
    """

    address: int
    count: int
    dtype: str
    stride: int
    by_column: bool


@dataclass(frozen=True, kw_only=True)
class Values:
    """What an integer of each class is worth.

    Args:
        first: the smallest integer, 0 or below.
        values: FP32 [classes, integers], of first, first + 1, ...
        column_scales: FP32 [n].
        row_scales: FP32 [m].
    """

    first: int
    values: NDArray[np.float32]
    column_scales: NDArray[np.float32]
    row_scales: NDArray[np.float32]

    def steps(self) -> NDArray[np.float32] | None:
        """If every value is its integer times a step, the step of each of 16 classes."""
        one = 1 - self.first
        if one >= self.values.shape[1]:
            return None
        integers = np.arange(self.first, self.first + self.values.shape[1], dtype=np.float32)
        step = self.values[:, one]
        with np.errstate(invalid="ignore", over="ignore"):
            if not np.array_equal(integers * step[:, None], self.values):
                return None
        return np.pad(step, (0, _CLASSES - len(step)))


class Synthesis:
    """Writes the weights of one matrix, a rectangle at a time, from any thread.

    Args:
        values: its values and scales, contiguous.
        output: where weights go; room for all of them, which outlives this object.
    """

    def __init__(self, values: Values, output: Output) -> None:
        self.values = values
        self.output = output
        self._dtype = DTYPES.index(output.dtype)
        self._item = 4 if self._dtype == 0 else 2
        self._steps = values.steps()
        self._library = native_library.library()
        self._library.nwc_prepare_output(output.address, output.count * self._item)

    def struct(self, classes: Classes, column: int = 0, row: int = 0) -> native_library.Synthesis:
        """All that a rectangle's weights depend on but its integers.

        Args:
            classes: of the rectangle, contiguous; they and this object outlive the struct.
            column: its first column.
            row: its first row.
        """
        values, output = self.values, self.output
        element = (
            column * output.stride + row if output.by_column else row * output.stride + column
        )
        return native_library.Synthesis(
            column_classes=classes.columns.ctypes.data,
            row_classes=classes.rows.ctypes.data,
            column_scales=values.column_scales.ctypes.data + 4 * column,
            row_scales=values.row_scales.ctypes.data + 4 * row,
            values=values.values.ctypes.data,
            steps=None if self._steps is None else self._steps.ctypes.data,
            out=output.address + element * self._item,
            columns=len(classes.columns),
            rows=min(classes.rows.size, len(values.row_scales) - row),
            count=values.values.shape[1],
            stride=output.stride,
            first=values.first,
            dtype=self._dtype,
            by_column=output.by_column,
        )

    def write(self, integers: NDArray[np.int16], classes: Classes, column: int, row: int) -> None:
        """Write the weights of integers [columns, chunks, 16] from (row, column) on.

        Rows of padding are left out.

        Args:
            integers: of tables, and of patches, that `values` covers; columns contiguous.
            classes: of the rectangle.
            column: its first column.
            row: its first row.
        """
        classes = Classes(*map(np.ascontiguousarray, classes))
        job = self.struct(classes, column, row)
        job.integers, job.step = integers.ctypes.data, integers.strides[0] // 2
        self._library.nwc_synthesise(native_library.level(), ctypes.byref(job))
