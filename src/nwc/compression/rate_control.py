"""Find the gain that makes the whole file as large as was asked for, and keep it on course.

Rate is close to linear in log2 gain with slope 1. Before anything is compressed, the entropy of a
sample of rows of every matrix gives the line; each finished group then shows how far the sample
was off (feedback enlarges what is coded), and the gain of what is left is solved for again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nwc.coding.tiling import PROFILES, Profile, tile_shape
from nwc.compression.plan import Plan, PlannedTensor
from nwc.compression.source import SourceCheckpoint
from nwc.compression.survey import Sensitivity
from nwc.errors import ConfigError
from nwc.methods.base import Importance, LayerMethod, LayerWeight
from nwc.methods.operating_point import natural_gain
from nwc.numerics.chunking import CHUNK, chunk_count, column_scales

_SAMPLE_WEIGHTS = 2**16
_MIN_LOG2_GAIN, _MAX_LOG2_GAIN = -4.0, 6.5
_SLOPE_SPAN = 0.25
"""Octaves over which the slope of the rate is measured."""

_TILE_BYTES = 72
_STREAM_BYTES = 130
_TABLE_BYTES = 40
_MAX_CHANGE, _SEEN_CHANGE = 0.75, 6.0
"""Octaves by which finished matrices may move the gain of the others: by how much at first, and
how much more when next to nothing is left. The last must not be ruined for all the rest."""

_OFFSETS = (-1.5, 2.5)
"""Octaves by which a matrix may be quantised more coarsely or finely than the mean. Real layers
differ by less; what the calibration text hardly needs is not given up altogether."""

_BANK_BYTES = 400
"""A guess at the shared tables, before any are there."""

_BANK_GROWTH = 0.5
"""How much the shared tables still grow when next to nothing is compressed."""


class Estimate(NamedTuple):
    """Predicted size of a matrix near the operating point.

    Args:
        kind: what it has in common with its like in other blocks.
        parameters: weights.
        offset: of its log2 gain against that of the model.
        payload_bits: bits per weight at the reference gain.
        overhead_bits: bits of everything but the payload.
    """

    kind: str
    parameters: int
    offset: float
    payload_bits: float
    overhead_bits: float


class Done(NamedTuple):
    """A finished matrix.

    Args:
        size: bytes of its stream.
        log2_gain: of the model when it was compressed.
    """

    size: int
    log2_gain: float


@dataclass(frozen=True, kw_only=True)
class RateController:
    """Plans the gain and corrects it. It keeps no state: what is finished is told at every call.

    Args:
        target_bits: of all compressed tensors and what they share.
        fixed_bits: what the file carries once: synthesis transform, shared header; shared tables
            apart.
        offset_digits: of places in the file, which its header spells out.
        reference: log2 gain of the estimates.
        slope: bits per weight that one more octave of gain costs.
        estimates: by name of the matrix.
    """

    target_bits: float
    fixed_bits: float
    offset_digits: int
    reference: float
    slope: float
    estimates: dict[str, Estimate]

    @classmethod
    def measure(
        cls,
        source: SourceCheckpoint,
        plan: Plan,
        method: LayerMethod,
        *,
        target: float,
        calibrated: bool,
        fixed_bytes: int,
        survey: Mapping[str, Sensitivity] | None = None,
        profile: Profile = PROFILES["balanced"],
    ) -> RateController:
        """Find the gain from samples of every matrix.

        Args:
            source: the checkpoint.
            plan: what will be compressed.
            method: how.
            target: bits per parameter over the compressed tensors, every overhead counted.
            calibrated: whether there will be Hessians.
            fixed_bytes: see `fixed_bits`.
            survey: what is known of inputs and gradients; decides which matrices get more bits.
            profile: tile size.

        Raises:
            ConfigError: the overheads alone exceed the target.
        """
        samples = _samples(source, plan, survey or {}, calibrated=calibrated)
        kept = sum(map(source.size, plan.kept))
        digits = len(str(round(kept + target * plan.parameters / 16)))
        overheads = {
            t.name: 8.0 * (_overhead_bytes(t, profile) + entry_bytes(t.name, 10**4, digits))
            for t in plan.tensors
        }
        fixed = 8.0 * fixed_bytes
        shared = fixed + 8 * _BANK_BYTES
        available = target - (sum(overheads.values()) + shared) / plan.parameters
        if available < 0.3:
            raise ConfigError(
                f"{target:.4g} bits per parameter cannot be met: scales, tables and headers take "
                f"{target - available:.2f} bits of this model's {plan.parameters:,} weights, the "
                f"synthesis transform {fixed / plan.parameters:.2f} of them; ask for more bits, "
                "or leave the transform out with --codec-by-reference"
            )

        def payload(gain: float) -> dict[str, float]:
            return {
                name: method.estimate(layer, importance, gain)
                for name, (layer, importance) in samples.items()
            }

        def mean(bits: dict[str, float]) -> float:
            return sum(bits[t.name] * t.parameters for t in plan.tensors) / plan.parameters

        gain = _clamp(available - 2.0)
        bits = payload(gain)
        slope = 1.0
        for _ in range(8):
            change = (available - mean(bits)) / slope
            previous, before = gain, mean(bits)
            gain = _clamp(gain + change)
            if abs(gain - previous) < 5e-3:
                break
            bits = payload(gain)
            if abs(gain - previous) > _SLOPE_SPAN:  # less is noise
                slope = min(max((mean(bits) - before) / (gain - previous), 0.2), 1.5)
        below = payload(gain - _SLOPE_SPAN)
        slope = min(max((mean(bits) - mean(below)) / _SLOPE_SPAN, 0.2), 1.5)
        return cls(
            target_bits=target * plan.parameters,
            fixed_bits=fixed,
            offset_digits=digits,
            reference=gain,
            slope=slope,
            estimates={
                t.name: Estimate(
                    t.kind,
                    t.parameters,
                    samples[t.name][0].offset,
                    bits[t.name],
                    overheads[t.name],
                )
                for t in plan.tensors
            },
        )

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return dataclasses.asdict(self) | {"estimates": self.estimates}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RateController:
        """Inverse of `to_json`."""
        estimates = {name: Estimate(*fields) for name, fields in value["estimates"].items()}
        return cls(**(value | {"estimates": estimates}))

    def log2_gain(self, done: Mapping[str, Done], bank_bytes: int) -> float:
        """The gain that makes the whole as large as wanted, given what is finished.

        Args:
            done: finished matrices.
            bank_bytes: of the tables that they share.

        A finished matrix shows how far the samples were off (feedback enlarges what is coded);
        those of its kind are expected to be off by as much, others by the mean. Both are drawn
        to zero as long as little is finished: a tiny matrix is all overhead.
        """
        surprise: dict[str, list[float]] = {}
        weights: dict[str, int] = {}
        for name, (size, gain) in done.items():
            estimate = self.estimates[name]
            excess = 8 * self._stored(name, size) - self._predicted(estimate, gain)
            surprise.setdefault(estimate.kind, []).append(excess)
            weights[estimate.kind] = weights.get(estimate.kind, 0) + estimate.parameters
        everything = sum(e.parameters for e in self.estimates.values())
        doubt = 0.02 * everything
        mean = sum(map(sum, surprise.values())) / (sum(weights.values()) + doubt)
        doubt /= len({e.kind for e in self.estimates.values()})
        excess_of = {
            kind: (sum(bits) + mean * doubt) / (weights[kind] + doubt)
            for kind, bits in surprise.items()
        }
        waiting = [e for name, e in self.estimates.items() if name not in done]
        expected = sum(
            self._predicted(e, self.reference) + excess_of.get(e.kind, mean) * e.parameters
            for e in waiting
        )
        parameters = sum(e.parameters for e in waiting)
        bank = max(_BANK_BYTES, bank_bytes * (1 + _BANK_GROWTH * parameters / everything))
        missing = self.target_bits - self._spent(done, bank) - expected
        change = missing / max(1, parameters) / self.slope
        most = _MAX_CHANGE + _SEEN_CHANGE * (1 - parameters / everything)
        return _clamp(self.reference + min(max(change, -most), most))

    def deviation(self, done: Mapping[str, Done], bank_bytes: int) -> float:
        """Relative difference of what everything takes and the target, when all is finished.

        Args:
            done: all matrices.
            bank_bytes: of the shared tables.
        """
        return (self._spent(done, bank_bytes) - self.target_bits) / self.target_bits

    def corrected(self, tried: list[tuple[float, float]], parameters: int) -> float:
        """The gain with which compressing some matrices again meets the target.

        Args:
            tried: gains, and the deviation that each led to.
            parameters: weights of the matrices.
        """
        gain, deviation = tried[-1]
        slope = self.slope * parameters / self.target_bits
        if len(tried) > 1 and gain != tried[-2][0]:
            # Where outliers leave the tables, bits rise faster than anywhere else.
            seen = (deviation - tried[-2][1]) / (gain - tried[-2][0])
            slope = min(max(seen, 0.3 * slope), 20 * slope)
        return _clamp(gain - deviation / slope)

    def _predicted(self, estimate: Estimate, gain: float) -> float:
        payload = estimate.payload_bits + self.slope * (gain - self.reference)
        return estimate.overhead_bits + payload * estimate.parameters

    def _spent(self, done: Mapping[str, Done], bank_bytes: float) -> float:
        streams = sum(self._stored(name, d.size) for name, d in done.items())
        return self.fixed_bits + 8 * (streams + bank_bytes)

    def _stored(self, name: str, size: int) -> int:
        return size + entry_bytes(name, size, self.offset_digits)


def _unknown_importance(W: Tensor) -> Importance:
    """Before calibration: some columns will matter more than others, which ones is not known.

    Water-filling leaves the mean gain as it is, so that equal gains give about its rate.
    """
    spread = torch.arange(W.shape[1], dtype=torch.float64) * 0.6180339887498949 % 1
    scales = column_scales(W)
    d = torch.where(scales > 0, scales, torch.ones_like(scales)).pow(-2)
    return Importance(spread.float(), d, None)


def _clamp(log2_gain: float) -> float:
    return min(max(log2_gain, _MIN_LOG2_GAIN), _MAX_LOG2_GAIN)


def _overhead_bytes(tensor: PlannedTensor, profile: Profile) -> float:
    chunks = chunk_count(tensor.m)
    tile_chunks, tile_columns = tile_shape(chunks, tensor.n, profile)
    tiles = -(-chunks // tile_chunks) * -(-tensor.n // tile_columns)
    return tiles * _TILE_BYTES + _STREAM_BYTES + _TABLE_BYTES + 0.35 * tensor.n


def entry_bytes(name: str, size: int, offset_digits: int) -> int:
    """What the entry of a stream takes in the header of its shard.

    Example:
        >>> entry_bytes("a", 123, 4) == len('"a.nwc":{"dtype":"U8","shape":[123],'
        ...                                 '"data_offsets":[1000,1000]},')
        True
    """
    offset = 10 ** (offset_digits - 1)
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset]}
    return len(json.dumps({f"{name}.nwc": entry}, separators=(",", ":"))) - 1


def _samples(
    source: SourceCheckpoint,
    plan: Plan,
    survey: Mapping[str, Sensitivity],
    *,
    calibrated: bool,
) -> dict[str, tuple[LayerWeight, Importance | None]]:
    """A few rows of every matrix, with its offset and what is known of its importance."""
    samples: dict[str, tuple[LayerWeight, Importance | None]] = {}
    natural: dict[str, float] = {}
    for t in plan.tensors:
        W, rows = _sample(source, t)
        seen = survey.get(t.name)
        if seen is not None:
            g = torch.cat([seen.row_weights[piece] for piece in rows])
            gain = natural_gain(W, seen.d, g)
            if gain is not None:
                natural[t.name] = gain
            layer = LayerWeight(name=t.name, W=W, row_weights=g)
            samples[t.name] = layer, Importance(seen.d, seen.d, g)
        else:
            reached = calibrated and t.block is not None
            importance = _unknown_importance(W) if reached else None
            samples[t.name] = LayerWeight(name=t.name, W=W), importance
    weights = {t.name: t.parameters for t in plan.tensors if t.name in natural}
    mean = sum(natural[name] * count for name, count in weights.items())
    mean /= max(1, sum(weights.values()))
    for name, gain in natural.items():
        layer, importance = samples[name]
        offset = min(max(gain - mean, _OFFSETS[0]), _OFFSETS[1])
        samples[name] = dataclasses.replace(layer, offset=offset), importance
    return samples


def _sample(source: SourceCheckpoint, tensor: PlannedTensor) -> tuple[Tensor, list[slice]]:
    """Groups of 16 rows spread over the matrix, up to the sample size, and which they are."""
    groups = chunk_count(tensor.m)
    wanted = min(groups, max(2, _SAMPLE_WEIGHTS // (tensor.n * CHUNK)))
    pieces = []
    for i in range(wanted):
        start = (i * groups // wanted) * CHUNK
        pieces.append(slice(start, min(start + CHUNK, tensor.m)))
    return source.rows(tensor.key, tensor.transposed, pieces, tensor.part), pieces
