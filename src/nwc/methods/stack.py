"""Layers that share their input, stacked and quantised column by column."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from nwc.codec.model import WeightCodec
from nwc.coding.tiling import Profile, tile_shape
from nwc.coding.trellis import Trellis
from nwc.kernels.viterbi_numba import FREE
from nwc.methods.code_lengths import FIRST_SYMBOL
from nwc.methods.operating_point import OperatingPoint
from nwc.numerics.chunking import CHUNK
from nwc.quantizers.trellis import Codebook, Column, Segments, decide, price, restore

SYMBOL_LIMIT = 2**15 - 1


class Stack(ABC):
    """Quantises stacked columns.

    Args:
        points: of every layer.
        sizes: rows of every layer, padding included.
        columns: n.
    """

    def __init__(self, points: list[OperatingPoint], sizes: list[int], columns: int) -> None:
        self.points = points
        self.sizes = sizes
        self.integers = np.zeros((columns, sum(sizes)), dtype=np.int16)

    @abstractmethod
    def quantise(self, column: int, target: Tensor) -> Tensor:
        """Choose the integers of a column; what they are decoded to [rows]."""

    def quantise_all(self, columns: Tensor) -> None:
        """Quantise [n, rows] without feedback, overwriting it with the errors."""
        for k, column in enumerate(columns):
            column -= self.quantise(k, column)


class ChunkStack(Stack):
    """For transforms that see a chunk at once: transform, round.

    Args:
        codec: the transforms.
        points: see `Stack`.
        sizes: see `Stack`.
        columns: see `Stack`.
        device: where the transforms run.
    """

    def __init__(
        self,
        codec: WeightCodec,
        points: list[OperatingPoint],
        sizes: list[int],
        columns: int,
        device: str,
    ) -> None:
        super().__init__(points, sizes, columns)
        self.codec = codec
        chunks = torch.tensor(sizes) // CHUNK
        scales = torch.stack([p.scales for p in points], 1).to(device)
        self.scales = scales.repeat_interleave(chunks, 1)[:, :, None]
        self.inverse = torch.where(self.scales > 0, self.scales.reciprocal(), 0)
        levels = torch.from_numpy(np.stack([p.classes.columns for p in points], 1)).to(device)
        self.levels = levels.repeat_interleave(chunks, 1).long()
        gains = torch.tensor([p.log2_gain for p in points], device=device)
        self.gains = gains.repeat_interleave(chunks)

    def quantise(self, column: int, target: Tensor) -> Tensor:
        """See `Stack.quantise`."""
        level = self.levels[column]
        x = target.view(len(level), CHUNK) * self.inverse[column]
        z = self.codec.analysis(x, level, self.gains).round_()
        z.clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        self.integers[column] = z.flatten().to(torch.int16).cpu().numpy()
        return (self.codec.synthesis(z, level, self.gains) * self.scales[column]).flatten()


class PathStack(Stack):
    """For transforms that treat every weight by itself: the best path under a codebook.

    Args:
        codec: the transforms.
        points: see `Stack`.
        sizes: see `Stack`.
        columns: see `Stack`.
        lengths: for each layer what symbols cost, by class and parity.
        trellis: None for scalar quantisation.
        rate_weight: lambda, in squared steps per bit.
        profile: tile size; lanes start anew in every tile.
        spread: largest weight in units of its step, or so.
    """

    def __init__(
        self,
        codec: WeightCodec,
        points: list[OperatingPoint],
        sizes: list[int],
        columns: int,
        *,
        lengths: list[np.ndarray],
        trellis: Trellis | None,
        rate_weight: float,
        profile: Profile,
        spread: float,
    ) -> None:
        super().__init__(points, sizes, columns)
        tiles = [tile_shape(size // CHUNK, columns, profile) for size in sizes]
        self.segments = Segments.of([s // CHUNK for s in sizes], [shape[0] for shape in tiles])
        self.strips = np.array([tiles[layer][1] for layer in self.segments.layers])
        self.codebook = _codebook(codec, points, lengths, trellis, rate_weight, spread)
        layers = self.segments.layers
        self.scales = np.stack([p.scales.numpy() for p in points], 1)[:, layers]
        self.classes = np.stack([p.classes.columns for p in points], 1)[:, layers]
        self.row_classes = np.concatenate([p.classes.rows.reshape(-1) for p in points])
        self.row_scales = np.zeros(sum(sizes), dtype=np.float32)
        for point, stop in zip(points, np.cumsum(sizes), strict=True):
            start = stop - point.classes.rows.size
            self.row_scales[start : start + len(point.row_scales)] = point.row_scales.numpy()
        self.path = np.zeros((len(layers), CHUNK), dtype=np.int8)
        self.free = np.full_like(self.path, FREE)
        self.weights = np.ones((columns, len(layers)))
        self.before = np.zeros((columns, *self.path.shape), dtype=np.int8)

    def quantise(self, column: int, target: Tensor) -> Tensor:
        """See `Stack.quantise`; columns must come in order."""
        self.path[column % self.strips == 0] = 0
        self.before[column] = self.path
        decision = decide(self._column(column, target, self.free), self.segments, self.codebook)
        self.path = decision.path
        self.integers[column] = decision.integers
        return torch.from_numpy(decision.restored).to(target.device)

    def quantise_all(self, columns: Tensor) -> None:
        """Choose the integers of all columns at once, a tile a path: no column waits for another.

        Args:
            columns: [n, rows], W^T of the stacked layers; overwritten with the errors.
        """
        starts = CHUNK * self.segments.starts
        for i, layer in enumerate(self.segments.layers.tolist()):
            rows = slice(int(starts[i]), int(starts[i + 1]))
            for start in range(0, len(columns), int(self.strips[i])):
                tile = np.s_[start : start + int(self.strips[i]), rows]
                part = columns[tile].cpu().numpy()
                scales = self.scales[tile[0], i, None] * self.row_scales[rows]
                classes = self.classes[tile[0], i, None] + self.row_classes[rows]
                decision = decide(
                    Column(
                        targets=part.reshape(-1),
                        scales=np.ones(1, dtype=np.float32),
                        row_scales=scales.reshape(-1),
                        classes=np.zeros(1, dtype=np.int64),
                        row_classes=classes.reshape(-1),
                        weights=np.ones(1),
                        path=np.zeros((1, CHUNK), dtype=np.int8),
                        ends=self.free[:1],
                    ),
                    Segments(starts=np.array([0, part.size // CHUNK]), layers=np.array([layer])),
                    self.codebook,
                )
                self.integers[tile] = decision.integers.reshape(part.shape)
                restored = torch.from_numpy(decision.restored.reshape(part.shape))
                columns[tile] -= restored.to(columns.device)

    def prepare_sweeps(self, diagonal: Tensor, d: Tensor) -> None:
        """From now on `improve` is called.

        Under feedback a squared error of column k counts d_k times, with the other columns fixed
        H_kk times. The price of a bit, lambda times the mean of d_k step_k^2, stays what it was.

        Args:
            diagonal: diag H.
            d: diagonal of D.
        """
        log2_step = self.codebook.steps[self.segments.layers[None], self.classes]
        power = (self.scales * log2_step) ** 2
        mean = (d.numpy()[:, None] * power).mean(0)
        self.weights = diagonal.numpy()[:, None] * power / np.where(mean > 0, mean, 1)

    def improve(self, column: int, wanted: Tensor, current: Tensor) -> Tensor:
        """Choose the integers of a column again, where that lowers distortion plus rate.

        Every lane starts and ends in the states that it had, so that the other columns stay valid.

        Args:
            column: its number.
            wanted: [rows], the error that would be best.
            current: [rows], its error now.

        Returns:
            Its error after.
        """
        after = self.before[(column + 1) % len(self.before)]
        last = ((column + 1) % self.strips == 0) | (column + 1 == len(self.before))
        ends = np.where(last[:, None], FREE, after).astype(np.int8)
        old = self.integers[column]
        restored = torch.from_numpy(
            restore(old, self._column(column, current, ends), self.segments, self.codebook)
        ).to(current.device)
        target = restored + current - wanted
        self.path = self.before[column]
        problem = self._column(column, target, ends)
        decision = decide(problem, self.segments, self.codebook)
        better = price(decision.integers, problem, self.segments, self.codebook) < price(
            old, problem, self.segments, self.codebook
        )
        # [segments, 16] to rows
        lengths = np.diff(self.segments.starts)
        rows = np.repeat(better, lengths, axis=0).reshape(-1)
        self.integers[column] = np.where(rows, decision.integers, old)
        new = torch.from_numpy(decision.restored).to(current.device)
        mask = torch.from_numpy(rows).to(current.device)
        return torch.where(mask, current + restored - new, current)

    def _column(self, column: int, target: Tensor, ends: np.ndarray) -> Column:
        return Column(
            targets=target.cpu().numpy(),
            scales=self.scales[column],
            row_scales=self.row_scales,
            classes=self.classes[column].astype(np.int64),
            row_classes=self.row_classes,
            weights=self.weights[column],
            path=self.path,
            ends=ends,
        )


def _codebook(
    codec: WeightCodec,
    points: list[OperatingPoint],
    lengths: list[np.ndarray],
    trellis: Trellis | None,
    rate_weight: float,
    spread: float,
) -> Codebook:
    parities = 1 if trellis is None else 2
    count = max(map(len, lengths))
    # Feedback makes some weights larger than they were.
    reach = min(parities * (2 * int(spread) + 64), SYMBOL_LIMIT - 15) // CHUNK * CHUNK
    integers = torch.arange(-reach, reach).float().view(-1, CHUNK) / parities
    levels = torch.arange(count)
    steps = np.empty((len(points), count), dtype=np.float32)
    values = np.empty((len(points), count, 2 * reach), dtype=np.float32)
    costs = np.zeros((len(points), count, parities, 256))
    for i, point in enumerate(points):
        steps[i] = torch.exp2(-codec.level_log2_gain(levels, point.log2_gain)).cpu().numpy()
        each = levels[:, None].expand(-1, len(integers))
        synthesis = codec.synthesis(
            integers.expand(count, -1, CHUNK), each, torch.tensor(point.log2_gain)
        )
        values[i] = synthesis.reshape(count, -1).cpu().numpy()
        costs[i, : len(lengths[i])] = rate_weight * lengths[i]
    return Codebook(
        steps=steps,
        values=values,
        first=-reach,
        costs=costs,
        first_symbol=FIRST_SYMBOL,
        trellis=trellis,
    )
