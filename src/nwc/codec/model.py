"""The neural weight codec: analysis, rounding, density, synthesis (paper Fig. 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from nwc.codec.config import MAX_LOG2_GAIN, CodecConfig
from nwc.codec.entropy_bottleneck import EntropyBottleneck
from nwc.codec.transforms import Correction, ResidualTransform
from nwc.numerics.chunking import CHUNK

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Gain = Float[Tensor, "..."] | float
    """log2 gain of level 0: one for all chunks, or one for each."""


class TrainingOutput(NamedTuple):
    """What one training pass gives: rate in bits per weight and squared error, per chunk."""

    bits: Tensor
    squared_error: Tensor


class WeightCodec(nn.Module):
    r"""Normalised chunks to integer latents and back.

    .. math:: \hat z = \lfloor g_a(x, level, gain) \rceil, \quad \hat x = g_s(\hat z, level, gain)

    The kinds `compander` and `skip` are z = g x + f_a(x, log2 g) and (z + f_s(z / g, log2 g)) / g:
    corrections in units of the step 1 / g. `residual` is the paper's pair of networks, fed with
    chunks rescaled by 2^(gain - nominal) to reach the rates between two lambdas. `light` and
    `identity` have no transforms.
    Everywhere log2 gain means the same: at high rates the error is 2^(-2 gain) / 12.

    Args:
        config: its shape.

    Example:
        >>> from nwc.codec.config import IDENTITY
        >>> codec = WeightCodec(IDENTITY)
        >>> x = torch.tensor([[0.1] * 16])
        >>> z = codec.analysis(x, torch.tensor([0]), log2_gain=3.0).round()
        >>> codec.synthesis(z, torch.tensor([0]), log2_gain=3.0)[0, 0].item()
        0.125
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a: nn.Module | None = None
        self.g_s: nn.Module | None = None
        self.density: EntropyBottleneck | None = None
        offsets = torch.tensor(config.level_offsets)
        self.register_buffer("_offsets", offsets, persistent=False)
        if config.kind == "residual":
            gains = (offsets + config.nominal_log2_gain).exp2()
            start, inverse = tuple(gains.tolist()), tuple(gains.reciprocal().tolist())
            self.g_a = ResidualTransform(config.width, config.blocks, start)
            self.g_s = ResidualTransform(config.width, config.blocks, inverse)
            self.density = EntropyBottleneck(CHUNK, scale=4.0 * float(gains.mean()))
        elif config.kind == "light":
            self.density = EntropyBottleneck(1)
        elif config.kind != "identity":
            size = 1 if config.kind == "compander" else CHUNK
            self.g_a = Correction(size, config.width)
            self.g_s = Correction(size, config.width)
            self.density = EntropyBottleneck(1)

    def level_log2_gain(self, level: Int[Tensor, "..."], log2_gain: Gain) -> Float[Tensor, "..."]:
        """log2 gain of chunks of the given importance level when level 0 has `log2_gain`."""
        offsets: Tensor = self._offsets  # type: ignore[assignment]
        base = torch.as_tensor(log2_gain)
        return torch.minimum(base + offsets[level], base.clamp_min(MAX_LOG2_GAIN))

    def usable_levels(self, log2_gain: float) -> int:
        """Levels whose latents still fit a table of 256 symbols; columns above get the last one.

        The kinds conditioned on their gain limit it instead, and can use every level.
        """
        if self.config.kind != "residual":
            return self.config.levels
        fit = [log2_gain + offset <= MAX_LOG2_GAIN + 0.6 for offset in self.config.level_offsets]
        return max(1, sum(fit))

    def analysis(
        self, chunks: Float[Tensor, "... 16"], level: Int[Tensor, "..."], log2_gain: Gain
    ) -> Float[Tensor, "... 16"]:
        """Latents before rounding."""
        if self.config.kind == "residual":
            assert self.g_a is not None
            return self.g_a(chunks * self._louder(log2_gain), level)
        c = self.level_log2_gain(level, log2_gain)[..., None]
        latents = chunks * c.exp2()
        return latents if self.g_a is None else latents + self.g_a(chunks, c)

    def synthesis(
        self, latents: Float[Tensor, "... 16"], level: Int[Tensor, "..."], log2_gain: Gain
    ) -> Float[Tensor, "... 16"]:
        """Chunks from rounded latents."""
        if self.config.kind == "residual":
            assert self.g_s is not None
            return self.g_s(latents, level) / self._louder(log2_gain)
        c = self.level_log2_gain(level, log2_gain)[..., None]
        step = torch.exp2(-c)
        corrected = latents if self.g_s is None else latents + self.g_s(latents * step, c)
        return corrected * step

    def _louder(self, log2_gain: Gain) -> Float[Tensor, "... 1"]:
        """How much the networks' input is scaled up to work at another gain than their own."""
        return torch.exp2(torch.as_tensor(log2_gain) - self.config.nominal_log2_gain)[..., None]

    def training_pass(
        self,
        chunks: Float[Tensor, "batch 16"],
        level: Int[Tensor, " batch"],
        log2_gain: Float[Tensor, " batch"],
        noise: Float[Tensor, "batch 16"],
    ) -> TrainingOutput:
        """Rate and distortion with rounding replaced by uniform noise (Ballé et al. 2017).

        Args:
            chunks: unit-variance chunks.
            level: importance level of every chunk; read by kind `residual`.
            log2_gain: gain of every chunk; read by the other kinds.
            noise: samples from [-1/2, 1/2).
        """
        assert self.density is not None
        if self.config.kind == "residual":
            assert self.g_a is not None
            assert self.g_s is not None
            z = self.g_a(chunks, level) + noise
            restored = self.g_s(z, level)
            likelihood = self.density.likelihood(z.float().T).T
        else:
            c = log2_gain[:, None]
            step = torch.exp2(-c)
            z = chunks / step + noise
            z = z if self.g_a is None else z + self.g_a(chunks, c)
            restored = (z if self.g_s is None else z + self.g_s(z * step, c)) * step
            gain = c.exp2().expand_as(z).reshape(1, -1)
            likelihood = self.density.likelihood(z.float().reshape(1, -1), gain).view_as(z)
        bits = -likelihood.log2().mean(dim=-1)
        return TrainingOutput(bits, (restored.float() - chunks).square().mean(dim=-1))

    @torch.no_grad()
    def prior(self, level: int, log2_gain: float, symbols: Tensor) -> Float[Tensor, "channels s"]:
        """Probability of each integer of `symbols` in every channel (one row if they share)."""
        assert self.density is not None
        z = symbols[None].float().expand(self.density.channels, -1)
        if self.config.kind == "residual":
            return self.density.likelihood(z)
        c = self.level_log2_gain(torch.tensor(level), log2_gain)
        return self.density.likelihood(z, c.exp2())
