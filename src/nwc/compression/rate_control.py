"""Find the gain that makes the whole file as large as was asked for, and keep it on course.

Rate is close to linear in log2 gain with slope 1. Before anything is compressed, the entropy of a
sample of rows of every matrix gives the line; each finished group then shows how far the sample
was off (feedback enlarges what is coded), and the gain of what is left is solved for again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nwc.coding.tiling import PROFILES, Profile, tile_shape
from nwc.compression.plan import Plan, PlannedTensor
from nwc.compression.source import SourceCheckpoint
from nwc.errors import ConfigError
from nwc.methods.base import LayerMethod
from nwc.numerics.chunking import CHUNK, chunk_count

_SAMPLE_WEIGHTS = 2**16
_MIN_LOG2_GAIN, _MAX_LOG2_GAIN = -4.0, 6.5
_TILE_BYTES = 72
_STREAM_BYTES = 130
_TABLE_BYTES = 40


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Predicted size of a matrix near the operating point.

    Args:
        parameters: weights.
        payload_bits: bits per weight at the reference gain.
        overhead_bits: bits of everything but the payload.
    """

    parameters: int
    payload_bits: float
    overhead_bits: float


class RateController:
    """Plans and corrects the gain.

    Args:
        target: bits per parameter over the compressed tensors, every overhead counted.
        fixed_bytes: what the file carries once: synthesis transform, shared header.

    Raises:
        ConfigError: the overheads alone exceed the target, or no gain reaches it.
    """

    def __init__(
        self,
        source: SourceCheckpoint,
        plan: Plan,
        method: LayerMethod,
        *,
        target: float,
        calibrated: bool,
        fixed_bytes: int,
        profile: Profile = PROFILES["balanced"],
    ) -> None:
        self.target_bits = target * plan.parameters
        self._fixed_bits = 8.0 * fixed_bytes
        self._excess = 0.0
        self._done: dict[str, tuple[int, float]] = {}
        samples = {t.key: _sample(source, t) for t in plan.tensors}
        overheads = {t.key: 8.0 * _overhead_bytes(t, profile) for t in plan.tensors}
        overhead = sum(overheads.values()) + self._fixed_bits
        available = (self.target_bits - overhead) / plan.parameters
        if available < 0.3:
            raise ConfigError(
                f"{target} bits per parameter cannot be met: scales, tables and headers take "
                f"{overhead / plan.parameters:.2f} bits of this model's {plan.parameters:,} "
                f"weights, the synthesis transform {self._fixed_bits / plan.parameters:.2f} of "
                "them; ask for more bits, or leave the transform out with --codec-by-reference"
            )

        def payload(gain: float) -> dict[str, float]:
            return {t.key: method.estimate(samples[t.key], gain, calibrated) for t in plan.tensors}

        def mean(bits: dict[str, float]) -> float:
            return sum(bits[t.key] * t.parameters for t in plan.tensors) / plan.parameters

        gain = min(max(available - 2.0, _MIN_LOG2_GAIN), _MAX_LOG2_GAIN)
        bits = payload(gain)
        slope = 1.0
        for _ in range(8):
            change = (available - mean(bits)) / slope
            previous, before = gain, mean(bits)
            gain = min(max(gain + change, _MIN_LOG2_GAIN), _MAX_LOG2_GAIN)
            if abs(gain - previous) < 1e-3:
                break
            bits = payload(gain)
            slope = min(max((mean(bits) - before) / (gain - previous), 0.2), 1.5)
        self._reference, self._slope = gain, slope
        self.log2_gain = gain
        self._waiting = {
            t.key: Estimate(
                parameters=t.parameters, payload_bits=bits[t.key], overhead_bits=overheads[t.key]
            )
            for t in plan.tensors
        }
        self._estimates = dict(self._waiting)

    def record(self, sizes: dict[str, int]) -> None:
        """Tell the controller the bytes of finished streams; corrects `log2_gain` for the rest.

        Recording a matrix again replaces what was said of it.
        """
        for key, size in sizes.items():
            self._done[key] = (size + _entry_bytes(key), self.log2_gain)
            self._waiting.pop(key, None)
        surprise = weights = 0.0
        for key, (size, gain) in self._done.items():
            estimate = self._estimates[key]
            surprise += 8 * size - self._predicted(estimate, gain)
            weights += estimate.parameters
        self._excess = surprise / weights
        if self._waiting:
            self._solve(list(self._waiting.values()), self._spent())

    @property
    def deviation(self) -> float:
        """Relative difference of what the finished matrices took and the target, when all are."""
        return (self._spent() - self.target_bits) / self.target_bits

    def retry(self, keys: list[str]) -> None:
        """Aim the gain so that compressing these finished matrices again meets the target."""
        again = [self._estimates[key] for key in keys]
        spent = self._spent() - sum(8 * self._done[key][0] for key in keys)
        size, weights = 8 * sum(self._done[k][0] for k in keys), sum(e.parameters for e in again)
        self.log2_gain += (self.target_bits - spent - size) / weights / self._slope
        self._clamp()

    def _predicted(self, estimate: Estimate, gain: float) -> float:
        payload = estimate.payload_bits + self._slope * (gain - self._reference)
        return estimate.overhead_bits + payload * estimate.parameters

    def _spent(self) -> float:
        return self._fixed_bits + sum(8 * size for size, _ in self._done.values())

    def _solve(self, estimates: list[Estimate], spent: float) -> None:
        weights = sum(e.parameters for e in estimates)
        at_reference = sum(self._predicted(e, self._reference) for e in estimates)
        missing = self.target_bits - spent - at_reference - self._excess * weights
        self.log2_gain = self._reference + missing / weights / self._slope
        self._clamp()

    def _clamp(self) -> None:
        self.log2_gain = min(max(self.log2_gain, _MIN_LOG2_GAIN), _MAX_LOG2_GAIN)


def _overhead_bytes(tensor: PlannedTensor, profile: Profile) -> float:
    chunks = chunk_count(tensor.m)
    tile_chunks, tile_columns = tile_shape(chunks, tensor.n, profile)
    tiles = -(-chunks // tile_chunks) * -(-tensor.n // tile_columns)
    header = _STREAM_BYTES + _entry_bytes(tensor.key)
    return tiles * _TILE_BYTES + header + _TABLE_BYTES + 0.35 * tensor.n


def _entry_bytes(key: str) -> int:
    """What a stream's entry in the header of its shard takes."""
    return 75 + len(key)


def _sample(source: SourceCheckpoint, tensor: PlannedTensor) -> Tensor:
    """Groups of 16 rows spread over the matrix, up to the sample size."""
    groups = chunk_count(tensor.m)
    wanted = min(groups, max(2, _SAMPLE_WEIGHTS // (tensor.n * CHUNK)))
    pieces = []
    for i in range(wanted):
        start = (i * groups // wanted) * CHUNK
        pieces.append(slice(start, min(start + CHUNK, tensor.m)))
    return source.rows(tensor.key, tensor.transposed, pieces)
