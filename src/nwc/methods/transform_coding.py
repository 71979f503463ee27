"""Normalise, transform, round, entropy code: the engine of `nwc` and `ecsq`.

The methods differ in their codec and in what a scale belongs to. With a Hessian the columns are
quantised in order under LDLQ feedback (`numerics.ldlq`); layers that share their input are stacked
and done together. Without one, all columns at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nwc.calibration.importance import importance_levels, waterfilled_levels
from nwc.codec import scales as scale_codes
from nwc.codec.compressed import MeasuredErrors
from nwc.codec.model import WeightCodec
from nwc.coding import bitstream
from nwc.coding.container import Section
from nwc.coding.rate import coded_bits
from nwc.coding.tables import FrequencyTable, TableBank, choose_tables, from_probabilities
from nwc.coding.tiling import PROFILES, Profile
from nwc.errors import CalibrationError
from nwc.kernels.backend import encode_tile
from nwc.methods.base import CompressedLayer, LayerMethod, LayerWeight
from nwc.numerics.chunking import CHUNK, chunk_count, column_scales
from nwc.numerics.ldlq import LDL, feedback, ldl, proxy_loss

if TYPE_CHECKING:
    from jaxtyping import Float

Scaling = Literal["column_log", "column_f16", "tensor"]

_PRIOR_GRID = 4
"""Prior tables are made for gains rounded to quarter octaves, so that tensors can share them."""

_BATCH_COLUMNS = 64
_SYMBOL_LIMIT = 2**15 - 1


class OperatingPoint(NamedTuple):
    """How the columns of one matrix are quantised.

    Args:
        scale_bytes: the scales as the stream holds them.
        scales: [n], as a reader gets them.
        levels: [n], importance level of every column.
        log2_gain: of level 0.
    """

    scale_bytes: bytes
    scales: Tensor
    levels: np.ndarray
    log2_gain: float


class TransformCoding(LayerMethod):
    """See the module.

    Args:
        codec: the transforms and their prior.
        scaling: one scale a column (logarithmic or FP16) or one a tensor.
        profile: tile size.
        device: where quantisation runs.
    """

    def __init__(
        self,
        codec: WeightCodec,
        scaling: Scaling,
        profile: Profile = PROFILES["balanced"],
        device: str = "cpu",
    ) -> None:
        super().__init__(codec.to(device).eval().requires_grad_(False))
        self.scaling = scaling
        self.profile = profile
        self.device = device
        self._priors: dict[tuple[int, int], list[FrequencyTable]] = {}

    def compress(
        self, layers: list[LayerWeight], H: Tensor | None, log2_gain: float, bank: TableBank
    ) -> list[CompressedLayer]:
        """See `LayerMethod.compress`."""
        factor = None if H is None else self._factor(H, layers)
        points = [self._operating_point(layer.W, H, factor, log2_gain) for layer in layers]
        sizes = [chunk_count(len(layer.W)) * CHUNK for layer in layers]
        columns = torch.zeros(layers[0].W.shape[1], sum(sizes), device=self.device)
        for layer, part in zip(layers, torch.split(columns, sizes, dim=1), strict=True):
            part[:, : len(layer.W)] = layer.W.T
        symbols = self._quantise(columns, points, sizes, factor)
        # `columns` now holds the errors E^T.
        results = []
        for layer, point, rows, error in zip(
            layers,
            points,
            np.split(symbols, np.cumsum(sizes)[:-1], axis=1),
            torch.split(columns, sizes, dim=1),
            strict=True,
        ):
            E = error[:, : len(layer.W)].T.cpu()
            errors = _measure(layer.W, E, H, factor)
            results.append(
                CompressedLayer(
                    name=layer.name,
                    data=self._encode(layer, rows, point, errors, bank),
                    errors=errors,
                    by_importance=None if H is None else _by_importance(layer.W, E, H.diagonal()),
                )
            )
        return results

    def estimate(self, W: Float[Tensor, "m n"], log2_gain: float, calibrated: bool) -> float:
        """See `LayerMethod.estimate`."""
        rows = len(W) // CHUNK * CHUNK
        W = W[:rows] if rows else torch.nn.functional.pad(W, (0, 0, 0, CHUNK - len(W)))
        n = W.shape[1]
        # Which columns will be important is not known yet; how many is. (Water-filling leaves the
        # mean gain as it is.)
        spread = torch.arange(n, dtype=torch.float64) * 0.6180339887498949 % 1
        H = torch.diag(spread) if calibrated else None
        point = self._operating_point(W, H, None, log2_gain)
        columns = W.T.contiguous().to(self.device)
        symbols = self._quantise(columns, [point], [len(W)], None)
        bits = coded_bits(
            symbols.reshape(n, -1, CHUNK), point.levels, self.codec.config.channels_share_tables
        )
        return bits / symbols.size

    def _factor(self, H: Tensor, layers: list[LayerWeight]) -> LDL:
        try:
            return ldl(H.to(self.device))
        except CalibrationError as error:
            names = ", ".join(layer.name for layer in layers)
            raise CalibrationError(f"{names}: {error}") from error

    def _operating_point(
        self, W: Tensor, H: Tensor | None, factor: LDL | None, log2_gain: float
    ) -> OperatingPoint:
        packed, scales = self._scales(W)
        config = self.codec.config
        levels = torch.zeros(len(scales), dtype=torch.uint8)
        if config.gain_conditioned:
            if factor is not None:
                levels = waterfilled_levels(scales, factor.d.cpu(), config.levels)
            # `log2_gain` is the mean over the columns, the stream's that of level 0.
            log2_gain -= float(torch.tensor(config.level_offsets)[levels.long()].mean())
        elif H is not None:
            usable = self.codec.usable_levels(log2_gain)
            levels = importance_levels(H.diagonal().cpu(), usable)
        # The stream stores the gain in FP32; quantise with what a reader will read.
        log2_gain = struct.unpack("<f", struct.pack("<f", log2_gain))[0]
        return OperatingPoint(packed, scales, levels.numpy(), log2_gain)

    def _scales(self, W: Tensor) -> tuple[bytes, Tensor]:
        if self.scaling == "tensor":
            return scale_codes.pack_single(float(column_scales(W.reshape(-1, 1))), W.shape[1])
        scales = column_scales(W)
        if self.scaling == "column_f16":
            return scale_codes.pack_f16(scales)
        return scale_codes.pack_log(scales)

    def _quantise(
        self,
        columns: Tensor,
        points: list[OperatingPoint],
        sizes: list[int],
        factor: LDL | None,
    ) -> np.ndarray:
        """Symbols [n, rows] of the stacked W^T in `columns`, which are overwritten with E^T."""
        n, rows = columns.shape
        chunks = torch.tensor(sizes) // CHUNK
        symbols = torch.empty(n, rows, dtype=torch.int16, device=self.device)
        scales = torch.stack([p.scales for p in points], 1).to(self.device)
        scales = scales.repeat_interleave(chunks, 1)[:, :, None]
        levels = torch.from_numpy(np.stack([p.levels for p in points], 1)).to(self.device)
        levels = levels.repeat_interleave(chunks, 1)
        gains = torch.tensor([p.log2_gain for p in points], device=self.device)
        gains = gains.repeat_interleave(chunks)
        inverse = torch.where(scales > 0, scales.reciprocal(), torch.zeros_like(scales))

        def quantise(which: slice, target: Tensor) -> Tensor:
            level = levels[which].long()
            gain = gains.expand(level.shape)
            x = target.view(*level.shape, CHUNK) * inverse[which]
            z = self.codec.analysis(x, level, gain).round_()
            z.clamp_(-_SYMBOL_LIMIT, _SYMBOL_LIMIT)
            symbols[which] = z.flatten(1).to(torch.int16)
            return (self.codec.synthesis(z, level, gain) * scales[which]).reshape(target.shape)

        if factor is None:
            for start in range(0, n, _BATCH_COLUMNS):
                which = slice(start, start + _BATCH_COLUMNS)
                columns[which] -= quantise(which, columns[which])
        else:
            one: Callable[[int, Tensor], Tensor] = lambda k, t: quantise(slice(k, k + 1), t)  # noqa: E731
            feedback(columns, factor.upper, one)
        return symbols.cpu().numpy()

    def _prior(self, level: int, log2_gain: float) -> list[FrequencyTable] | None:
        if self.codec.density is None:
            return None
        grid = round(log2_gain * _PRIOR_GRID)
        if (level, grid) not in self._priors:
            symbols = torch.arange(-128, 128, device=self.device)
            if self.codec.config.kind == "residual":
                pmf = self.codec.prior(level, log2_gain, symbols)
            else:
                pmf = self.codec.prior(level, grid / _PRIOR_GRID, symbols)
            self._priors[level, grid] = [
                from_probabilities(-128, row) for row in pmf.double().cpu().numpy()
            ]
        return self._priors[level, grid]

    def _encode(
        self,
        layer: LayerWeight,
        rows: np.ndarray,
        point: OperatingPoint,
        errors: MeasuredErrors,
        bank: TableBank,
    ) -> bytes:
        symbols = np.ascontiguousarray(rows).reshape(len(rows), -1, CHUNK)
        levels, log2_gain = point.levels, point.log2_gain
        count = int(levels.max()) + 1
        share = self.codec.config.channels_share_tables
        found = [self._prior(k, log2_gain) for k in range(count)]
        priors = None if found[0] is None else [p for p in found if p is not None]
        tables = choose_tables(symbols, levels, count, share, priors)
        from_bank = frozenset(t.key for p in priors or [] for t in p)
        kind = {
            "tensor": Section.SCALE,
            "column_f16": Section.SCALES_F16,
            "column_log": Section.SCALES_LOG,
        }[self.scaling]
        return bitstream.encode(
            symbols,
            levels,
            tables,
            rows=len(layer.W),
            profile=self.profile,
            bank=bank,
            bank_tables=from_bank,
            extra={
                kind: point.scale_bytes,
                Section.GAIN: struct.pack("<f", log2_gain),
                Section.ERRORS: errors.to_bytes(),
            },
            transposed=layer.transposed,
            tile_encoder=encode_tile,
        )


def _measure(W: Tensor, E: Tensor, H: Tensor | None, factor: LDL | None) -> MeasuredErrors:
    norm = float(W.norm())
    relative = float(E.norm()) / norm if norm else 0.0
    if H is None or factor is None:
        return MeasuredErrors(relative)
    H = H.cpu()
    power = proxy_loss(W, H)
    return MeasuredErrors(relative, proxy_loss(E, H) / power if power else 0.0, factor.damping)


def _by_importance(W: Tensor, E: Tensor, diagonal: Tensor) -> list[float]:
    """Relative error of the columns in each tenth of diag H, quietest first."""
    order = diagonal.cpu().argsort(stable=True)
    shares = []
    for columns in order.tensor_split(10):
        power = float(W[:, columns].square().sum())
        shares.append((float(E[:, columns].square().sum()) / power) ** 0.5 if power else 0.0)
    return shares
