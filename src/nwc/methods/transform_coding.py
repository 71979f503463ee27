"""Normalise, transform, quantise, entropy code: the engine of all methods that write streams.

The methods differ in their codec and in how steps are set (`methods.operating_point`). With a
Hessian the columns are quantised in order under LDLQ feedback (`numerics.ldlq`); layers that share
their input are stacked and done together (`methods.stack`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nwc.codec.compressed import MeasuredErrors
from nwc.codec.model import WeightCodec
from nwc.coding import bitstream
from nwc.coding.census import Cell, census, choose_tables, coded_bits
from nwc.coding.container import Section
from nwc.coding.tables import FrequencyTable, TableBank, from_probabilities
from nwc.coding.tiling import PROFILES, Profile
from nwc.coding.trellis import TRELLISES
from nwc.errors import CalibrationError
from nwc.kernels.backend import encode_tile
from nwc.methods import code_lengths
from nwc.methods.base import CompressedLayer, Importance, LayerMethod, LayerWeight
from nwc.methods.errors import by_importance, measure
from nwc.methods.operating_point import OperatingPoint
from nwc.methods.stack import ChunkStack, PathStack, Stack
from nwc.numerics.chunking import CHUNK, chunk_count
from nwc.numerics.ldlq import LDL, feedback, ldl, sweep

_COUNTED = 2**16
"""Weights of a matrix that are quantised to learn what symbols cost."""

_PRIOR_GRID = 4
"""Prior tables are made for gains rounded to quarter octaves, so that tensors can share them."""


class TransformCoding(LayerMethod):
    """See the module.

    Args:
        codec: the transforms and their prior.
        profile: tile size.
        device: where quantisation runs.
        states: of the trellis; 0 quantises weight by weight.
        rate_weight: lambda of the decisions, in squared steps per bit.
        sweeps: how often every column is decided again after LDLQ.
    """

    feeds_back: bool = True
    """Whether a Hessian, if there is one, decides anything."""

    def __init__(
        self,
        codec: WeightCodec,
        profile: Profile = PROFILES["balanced"],
        device: str = "cpu",
        *,
        states: int = 0,
        rate_weight: float = 0.0,
        sweeps: int = 0,
    ) -> None:
        super().__init__(codec.to(device).eval().requires_grad_(False))
        self.profile = profile
        self.device = device
        self.trellis = TRELLISES.get(states)
        self.rate_weight = rate_weight
        self.sweeps = sweeps
        self._priors: dict[tuple[int, int], list[FrequencyTable]] = {}

    @abstractmethod
    def operating_point(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> OperatingPoint:
        """Steps and classes of a matrix; without `importance` those of data-free compression."""

    def refined(
        self,
        W: Tensor,
        E: Tensor,
        point: OperatingPoint,
        integers: np.ndarray,
        H: Tensor | None,
        factor: LDL | None,
    ) -> tuple[OperatingPoint, Tensor]:
        """The scales that a reader shall get, once all integers of a matrix are known.

        Args:
            W: [m, n], the matrix.
            E: [m, n], its errors with the scales that it was quantised with.
            point: these scales.
            integers: [n, m].
            H: see `compress`.
            factor: of H.

        Returns:
            The scales, and the errors with them.
        """
        return point, E

    def compress(
        self, layers: list[LayerWeight], H: Tensor | None, log2_gain: float, bank: TableBank
    ) -> list[CompressedLayer]:
        """See `LayerMethod.compress`."""
        factor = None if H is None else self._factor(H, layers)
        points = []
        for layer in layers:
            importance = None
            if H is not None and factor is not None:
                importance = Importance(H.diagonal().cpu(), factor.d.cpu(), layer.row_weights)
            points.append(self.operating_point(layer, importance, log2_gain + layer.offset))
        sizes = [chunk_count(len(layer.W)) * CHUNK for layer in layers]
        columns = torch.zeros(layers[0].W.shape[1], sum(sizes), device=self.device)
        for layer, part in zip(layers, torch.split(columns, sizes, dim=1), strict=True):
            part[:, : len(layer.W)] = layer.W.T
        if self.feeds_back:
            integers = self._quantise(columns, points, sizes, H, factor)
        else:
            integers = self._quantise(columns, points, sizes, None, None)
        # `columns` now holds the errors E^T.
        results = []
        for layer, point, rows, error in zip(
            layers,
            points,
            np.split(integers, np.cumsum(sizes)[:-1], axis=1),
            torch.split(columns, sizes, dim=1),
            strict=True,
        ):
            m = len(layer.W)
            E = error[:, :m].T.cpu()
            point, E = self.refined(layer.W, E, point, rows[:, :m], H, factor)
            errors = measure(layer.W, E, H, factor)
            results.append(
                CompressedLayer(
                    name=layer.name,
                    data=self._encode(layer, rows, point, errors, bank),
                    errors=errors,
                    by_importance=None if H is None else by_importance(layer.W, E, H.diagonal()),
                )
            )
        return results

    def estimate(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> float:
        """See `LayerMethod.estimate`."""
        n = layer.W.shape[1]
        rows = chunk_count(len(layer.W)) * CHUNK
        point = self.operating_point(layer, importance, log2_gain + layer.offset)
        columns = torch.zeros(n, rows, device=self.device)
        columns[:, : len(layer.W)] = layer.W.T
        integers = self._quantise(columns, [point], [rows], None, None)
        paired = self.trellis is not None
        return coded_bits(self._census(integers, point), paired=paired) / integers.size

    def _factor(self, H: Tensor, layers: list[LayerWeight]) -> LDL:
        try:
            return ldl(H.to(self.device))
        except CalibrationError as error:
            names = ", ".join(layer.name for layer in layers)
            raise CalibrationError(f"{names}: {error}") from error

    def _stack(
        self,
        columns: Tensor,
        points: list[OperatingPoint],
        sizes: list[int],
        lengths: list[np.ndarray],
    ) -> Stack:
        n = len(columns)
        if not self.codec.config.elementwise:
            return ChunkStack(self.codec, points, sizes, n, self.device)
        spread = 0.0
        for point, part in zip(points, torch.split(columns, sizes, dim=1), strict=True):
            level = torch.from_numpy(point.classes.columns).long() + int(point.classes.rows.max())
            scales = point.scales * torch.exp2(-self.codec.level_log2_gain(level, point.log2_gain))
            rows = point.row_scales[point.row_scales > 0]
            alive = scales > 0
            if alive.any() and len(rows):
                peaks = part.abs().amax(1).cpu()[alive] / scales[alive]
                spread = max(spread, float(peaks.max()) / float(rows.min()))
        return PathStack(
            self.codec,
            points,
            sizes,
            n,
            lengths=lengths,
            trellis=self.trellis,
            rate_weight=self.rate_weight,
            profile=self.profile,
            spread=min(spread, 2.0**15),
        )

    def _quantise(
        self,
        columns: Tensor,
        points: list[OperatingPoint],
        sizes: list[int],
        H: Tensor | None,
        factor: LDL | None,
    ) -> np.ndarray:
        """Integers [n, rows] of the stacked W^T in `columns`, which are overwritten with E^T."""
        stack = self._stack(columns, points, sizes, self._lengths(columns, points, sizes))
        if factor is None or H is None:
            stack.quantise_all(columns)
            return stack.integers
        feedback(columns, factor.upper, partial(self._restored, stack))
        if self.sweeps and isinstance(stack, PathStack):
            H = H.to(self.device)
            stack.prepare_sweeps(H.diagonal().cpu(), factor.d.cpu())
            for _ in range(self.sweeps):
                sweep(columns, H, stack.improve)
        return stack.integers

    def _restored(self, stack: Stack, column: int, target: Tensor) -> Tensor:
        """What feedback takes a column for, once its integers are chosen."""
        return stack.quantise(column, target)

    def _lengths(
        self, columns: Tensor, points: list[OperatingPoint], sizes: list[int]
    ) -> list[np.ndarray]:
        """What symbols cost: the codec's prior, corrected by what a part of the columns takes."""
        if not self.rate_weight or self.codec.density is None:
            parities = 1 if self.trellis is None else 2
            return [np.zeros((_groups(p), parities, code_lengths.SYMBOLS)) for p in points]
        lengths = [code_lengths.of_tables(self._priors_of(point)) for point in points]
        part = slice(None, None, max(1, columns.numel() // (_COUNTED * len(points))))
        sample = columns[part].clone()
        parts = [point.part(part) for point in points]
        stack = self._stack(sample, parts, sizes, lengths)
        stack.quantise_all(sample)
        pieces = np.split(stack.integers, np.cumsum(sizes)[:-1], axis=1)
        return [
            code_lengths.counted(before, self._census(integers, point))
            for before, integers, point in zip(lengths, pieces, parts, strict=True)
        ]

    def _prior(self, level: int, log2_gain: float) -> list[FrequencyTable] | None:
        """Tables of a class by lane, or by parity."""
        if self.codec.density is None:
            return None
        grid = round(log2_gain * _PRIOR_GRID)
        if (level, grid) not in self._priors:
            symbols = torch.arange(-128, 128, device=self.device)
            gain = log2_gain if self.codec.config.kind == "residual" else grid / _PRIOR_GRID
            if self.trellis is None:
                pmfs = self.codec.prior(level, gain, symbols)
            else:
                both = [self.codec.prior(level, gain, symbols + shift) for shift in (0, 0.5)]
                pmfs = torch.cat(both)
            paired = self.trellis is not None
            self._priors[level, grid] = [
                from_probabilities(-128, row, paired=paired) for row in pmfs.double().cpu().numpy()
            ]
        return self._priors[level, grid]

    def _priors_of(self, point: OperatingPoint) -> list[list[FrequencyTable]]:
        """Tables of every class of a matrix."""
        found = [self._prior(level, point.log2_gain) for level in range(_groups(point))]
        return [tables for tables in found if tables is not None]

    def _census(self, integers: np.ndarray, point: OperatingPoint) -> Iterator[Cell]:
        return census(
            integers.reshape(len(integers), -1, CHUNK),
            point.classes,
            _groups(point),
            share_lanes=self.codec.config.channels_share_tables,
            trellis=self.trellis,
        )

    def _encode(
        self,
        layer: LayerWeight,
        rows: np.ndarray,
        point: OperatingPoint,
        errors: MeasuredErrors,
        bank: TableBank,
    ) -> bytes:
        integers = np.ascontiguousarray(rows)
        groups = _groups(point)
        priors = self._priors_of(point)
        tables = choose_tables(
            self._census(integers, point), groups, priors or None, paired=self.trellis is not None
        )
        return bitstream.encode(
            integers.reshape(len(integers), -1, CHUNK),
            point.classes,
            tables,
            rows=len(layer.W),
            trellis=self.trellis,
            profile=self.profile,
            bank=bank,
            bank_tables=frozenset(t.key for group in priors for t in group),
            extra={**point.sections, Section.ERRORS: errors.to_bytes()},
            transposed=layer.transposed,
            tile_encoder=encode_tile,
        )


def _groups(point: OperatingPoint) -> int:
    return int(point.classes.columns.max()) + int(point.classes.rows.max()) + 1
