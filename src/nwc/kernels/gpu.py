"""Tiles of many matrices decoded on a GPU, or on the CPU by Triton's interpreter.

The host checks what can be checked before decoding (`coding.bitstream`); a kernel reads nothing
outside its arrays whatever the words hold, and reports the tiles that do not end as they must.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from nwc.coding import rans
from nwc.coding.tiling import Classes, DecodingTables, Tile
from nwc.errors import BitstreamError, ConfigError
from nwc.kernels.tile_batch import Coded, Place, Slot, TileBatch, batch

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

Sink = Literal["integers", "weights", "products"]

TILES_PER_WARP = 2
"""16 lanes each."""

_CROWD = 4096
"""Tiles from which on a GPU is full: fewer are spread over as many programs as possible."""

_AHEAD = 64
"""Words: 16 steps at 4 bits, longer than memory takes to answer."""


def available(device: str | torch.device) -> bool:
    """Whether kernels run on a device: an NVIDIA or AMD GPU, with Triton installed."""
    usable = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return usable and importlib.util.find_spec("triton") is not None


def tiles_per_program(tiles: int) -> int:
    """Tiles of one program: a warp's while the GPU is not full, then those of four warps.

    A multiprocessor holds at most 32 programs but 64 warps.
    """
    return TILES_PER_WARP if tiles < _CROWD else 4 * TILES_PER_WARP


class DeviceBatch:
    """The arrays of a `TileBatch` in the memory of a device.

    Args:
        parts: the batch.
        device: where to; the CPU only under Triton's interpreter.
        column_scales: FP32, of all matrices; None for integers.
        row_scales: FP32, of all matrices, padding included; None if no matrix has any.
    """

    def __init__(
        self,
        parts: TileBatch,
        device: str | torch.device,
        column_scales: Float[Tensor, " columns"] | None = None,
        row_scales: Float[Tensor, " rows"] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._words = _words(parts.words, self.device)
        self._arrays = {
            "column_classes": _put(parts.column_classes, self.device),
            "row_classes": _put(parts.row_classes, self.device),
            "choice": _put(parts.choice, self.device),
            "packed": _put(parts.packed.view(np.int32), self.device),
            "values": _put(parts.values, self.device),
        }
        nothing = torch.zeros(1, device=self.device)
        self._scales = nothing if column_scales is None else column_scales.to(self.device)
        self._row_scales = nothing if row_scales is None else row_scales.to(self.device)
        self._has_row_scales = row_scales is not None

    @property
    def bytes(self) -> int:
        """Memory that the arrays take."""
        tensors = (self._words, self._scales, self._row_scales, *self._arrays.values())
        return sum(tensor.nbytes for tensor in tensors)

    def run(
        self,
        plan: Plan,
        sink: Sink,
        out: Tensor,
        *,
        out_stride: int = 0,
        vectors: Float[Tensor, "batch columns"] | None = None,
        ballot: bool | None = None,
        ahead: int | None = None,
    ) -> None:
        """Decode every tile; nothing is waited for.

        Args:
            plan: of the same matrices in the same order.
            sink: what is written.
            out: integers (int16), weights (a floating-point type) or sums of products (FP32), at
                the places that the plan was made with.
            out_stride: between the sums of two vectors.
            vectors: FP32, of all matrices' columns; for products.
            ballot: see `rans_triton.advance`; None where it can be.
            ahead: see `rans_triton.decode_tiles`; None where it can be and the GPU is not full.

        Raises:
            ConfigError: Triton is not installed.
        """
        decode_tiles = kernel("rans_triton", "decode_tiles")
        inputs = self._scales[None] if vectors is None else vectors
        options: dict[str, Any] = {}
        if self.device.type == "cuda":
            options["num_warps"] = plan.tiles // TILES_PER_WARP
        nvidia = self.device.type == "cuda" and torch.version.cuda is not None
        if ballot is None:
            ballot = nvidia
        if ahead is None:
            ahead = _AHEAD if nvidia and plan.tiles == TILES_PER_WARP else 0
        with torch.cuda.device_of(out):  # Triton launches on the current GPU
            for launch, slots, states, ends in plan.launches:
                decode_tiles[(len(launch.slots) // plan.tiles,)](
                    self._words,
                    states,
                    slots,
                    **self._arrays,
                    column_scales=self._scales,
                    row_scales=self._row_scales,
                    vectors=inputs,
                    vector_stride=inputs.stride(0),
                    out=out,
                    out_stride=out_stride,
                    ends=ends,
                    TILES=plan.tiles,
                    TRELLIS=launch.trellis,
                    ROW_CLASSES=launch.row_classes,
                    ROW_SCALES=self._has_row_scales,
                    SINK=sink,
                    BATCH=len(inputs),
                    BALLOT=ballot,
                    AHEAD=ahead,
                    **options,
                )


class Plan:
    """The slots of a `TileBatch` in the memory of a device: which program decodes what to where.

    Args:
        parts: the batch.
        tiles: of a program, as the batch was made.
        device: where to.
    """

    def __init__(self, parts: TileBatch, tiles: int, device: str | torch.device) -> None:
        self.tiles = tiles
        self._counts = parts.tiles
        device = torch.device(device)
        self.launches = [
            (
                launch,
                _put(launch.slots, device),
                _put(launch.states.view(np.int32), device),
                torch.ones(len(launch.slots), rans.LANES, dtype=torch.int32, device=device),
            )
            for launch in parts.launches
        ]

    def check(self) -> None:
        """Wait for the last run, and see that every tile ended as it must.

        Raises:
            BadTileError: one did not.
        """
        for launch, _, _, ends in self.launches:
            bad = np.flatnonzero(ends.any(dim=1).cpu().numpy())
            if len(bad):
                numbers = launch.slots[bad, Slot.TILE]
                tile = int(numbers[numbers >= 0].min())
                matrix = int(np.searchsorted(np.cumsum(self._counts), tile, side="right"))
                raise BadTileError(matrix, tile - sum(self._counts[:matrix]))


class BadMatrixError(BitstreamError):
    """A damaged matrix of a batch.

    Args:
        matrix: its number in the batch.
        what: is wrong.
    """

    def __init__(self, matrix: int, what: str) -> None:
        super().__init__(what)
        self.matrix = matrix


class BadTileError(BadMatrixError):
    """A tile whose words run out or are left over, or whose lanes do not end at 2^16.

    Args:
        matrix: its number in the batch.
        tile: its number in the matrix.
    """

    def __init__(self, matrix: int, tile: int) -> None:
        what = "its words run out or are left over, or a lane does not end at"
        super().__init__(matrix, f"tile {tile}: {what} {rans.LOWER}")
        self.tile = tile


def kernel(module: str, name: str) -> Any:  # noqa: ANN401 (a Triton kernel has no type)
    """A Triton kernel of a module of this package.

    Raises:
        ConfigError: Triton is not installed.
    """
    try:
        return getattr(importlib.import_module(f"nwc.kernels.{module}"), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"decoding on a GPU wants {error.name}, which is not installed: "
            "pip install neural-weight-compression[gpu]"
        ) from error


def _put(array: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _words(parts: list[NDArray[np.uint16]], device: torch.device) -> Tensor:
    """All words in one array; they go to the device a matrix at a time.

    One more, so that even a tile without words has an address.
    """
    out = torch.zeros(sum(len(part) for part in parts) + 1, dtype=torch.int16, device=device)
    start = 0
    for part in parts:
        words = np.array(part, dtype=np.uint16).view(np.int16)  # the stream's may lie unaligned
        out[start : start + len(part)] = torch.from_numpy(words).to(device)
        start += len(part)
    return out


def decode_tile(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    classes: Classes,
    tables: DecodingTables,
    device: str | torch.device = "cuda",
) -> NDArray[np.int16]:
    """`coding.tiling.TileDecoder` equal to the plain one integer for integer; for tests.

    Raises:
        BitstreamError: too few or too many words, or a lane that does not end at 2^16.
    """
    columns, chunks = len(classes.columns), len(classes.rows)
    tile = Tile(0, columns, 0, chunks, 0, len(words), 0, states)
    matrix = Coded(words, [tile], classes, tables, chunks * rans.LANES, columns)
    place = Place(0, chunks * rans.LANES, 1)
    parts = batch([matrix], [place], tiles_per_program=TILES_PER_WARP)
    out = torch.empty(columns, chunks, rans.LANES, dtype=torch.int16, device=device)
    plan = Plan(parts, TILES_PER_WARP, device)
    DeviceBatch(parts, device).run(plan, "integers", out)
    plan.check()
    return out.cpu().numpy()
