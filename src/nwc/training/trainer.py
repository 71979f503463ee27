"""Train a codec: fixed seed, checkpoints that resume to the same bytes, a JSONL log."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nwc.codec.config import MAX_LOG2_GAIN, CodecConfig
from nwc.codec.model import WeightCodec
from nwc.errors import ConfigError, FormatError
from nwc.numerics.chunking import CHUNK
from nwc.training.dataset import ChunkSet, synthetic
from nwc.training.loss import gain_loss, importance_loss

MIN_TRAINED_LOG2_GAIN = -1.5
"""Coarsest step that codecs conditioned on their gain are trained for: about one bit."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a codec is trained.

    Args:
        steps: optimiser steps.
        batch_chunks: chunks a step.
        learning_rate: of Adam, falling to zero along a cosine (the paper: 1e-4, constant).
        synthetic_fraction: part of every batch drawn from heavy-tailed mixtures, 0 ... 1.
        seed: of initialisation, sampling and noise.
        bf16: run the transforms under bfloat16 autocast.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of the log.
    """

    steps: int = 20_000
    batch_chunks: int = 4096
    learning_rate: float = 1e-3
    synthetic_fraction: float = 0.25
    seed: int = 0
    bf16: bool = True
    checkpoint_every: int = 1000
    log_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_chunks", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, wanted at least 1")
        if not 0 <= self.synthetic_fraction <= 1:
            raise ConfigError(
                f"synthetic_fraction is {self.synthetic_fraction}, wanted a value from 0 to 1"
            )
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate is {self.learning_rate}, wanted one in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One line of the log."""

    step: int
    loss: float
    bits_per_weight: float
    mse: float


class Trainer:
    """State of one training run.

    Args:
        codec_config: shape of the codec.
        config: how to train it.
        data: chunks, from `dataset.gather`.
        checkpoint: file that the run is saved to and resumed from.
    """

    def __init__(
        self, codec_config: CodecConfig, config: TrainingConfig, data: ChunkSet, checkpoint: Path
    ) -> None:
        if codec_config.kind == "identity":
            raise ConfigError("codec kind 'identity' has nothing to train; choose another kind")
        self.config = config
        self.data = data
        self.checkpoint = checkpoint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.codec = WeightCodec(codec_config)
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.optimizer = torch.optim.Adam(self.codec.parameters(), lr=config.learning_rate)
        self.step = 0

    def run(self, log: TextIO, on_progress: Callable[[Progress], None]) -> WeightCodec:
        """Train to the end; `on_progress` sees every logged line."""
        while self.step < self.config.steps:
            progress = self._step()
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                line = Progress(
                    step=self.step,
                    loss=progress[0].item(),
                    bits_per_weight=progress[1].item(),
                    mse=progress[2].item(),
                )
                log.write(json.dumps(dataclasses.asdict(line)) + "\n")
                log.flush()
                on_progress(line)
                if not math.isfinite(line.loss):
                    raise ConfigError(
                        f"loss is {line.loss} at step {self.step}, wanted a finite one: "
                        "lower --learning-rate or start from another --seed"
                    )
            if self.step % self.config.checkpoint_every == 0:
                self.save()
        return self.codec

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        config, generator = self.config, self.generator
        fraction = 0.5 * (1 + math.cos(math.pi * self.step / config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * max(fraction, 1e-3)
        made = round(config.batch_chunks * config.synthetic_fraction)
        index = torch.randint(
            len(self.data.train), (config.batch_chunks - made,), generator=generator
        )
        chunks = torch.cat([self.data.train[index], synthetic(made, generator)])
        loss, bits, error = self.loss(chunks, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.codec.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.detach(), bits.detach().mean(), error.detach().mean()

    def loss(self, chunks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one batch, and bits per weight and squared error of every chunk."""
        shape = self.codec.config
        level = torch.randint(shape.levels, (len(chunks),), generator=generator)
        span = MAX_LOG2_GAIN + 0.25 - MIN_TRAINED_LOG2_GAIN
        log2_gain = MIN_TRAINED_LOG2_GAIN + span * torch.rand(len(chunks), generator=generator)
        noise = torch.rand(len(chunks), CHUNK, generator=generator) - 0.5
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            output = self.codec.training_pass(chunks, level, log2_gain, noise)
        if shape.kind == "residual":
            assert shape.lam is not None
            loss = importance_loss(output, shape.lam, torch.tensor(shape.importance)[level])
        else:
            loss = gain_loss(output, log2_gain.exp2())
        return loss, *output

    def _fingerprint(self) -> str:
        # A resumed run must be the run that was stopped.
        config = dataclasses.asdict(self.config)
        del config["checkpoint_every"], config["log_every"]
        return json.dumps([self.codec.config.to_dict(), config, len(self.data.train)])

    def save(self) -> None:
        """Write model, optimiser and generator, replacing the last checkpoint atomically."""
        tensors = {f"model.{k}": v for k, v in self.codec.state_dict().items()}
        names = [name for name, _ in self.codec.named_parameters()]
        for i, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"adam.{key}.{names[i]}"] = torch.as_tensor(value)
        tensors["generator"] = self.generator.get_state()
        metadata = {"step": str(self.step), "run": self._fingerprint()}
        partial = self.checkpoint.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Continue from the checkpoint.

        Raises:
            FormatError: there is none, it is damaged, or it belongs to another run.
        """
        if not self.checkpoint.exists():
            raise FormatError(f"nothing to resume: {self.checkpoint} does not exist")
        try:
            with safe_open(self.checkpoint, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise FormatError(
                f"{self.checkpoint} is not a training checkpoint: {error}"
            ) from error
        if metadata.get("run") != self._fingerprint():
            raise FormatError(
                f"{self.checkpoint} was written with {metadata.get('run')}, this run has "
                f"{self._fingerprint()}: use the same options and data, or leave out --resume"
            )
        names = [name for name, _ in self.codec.named_parameters()]
        state = self.optimizer.state_dict()
        try:
            step = int(metadata["step"])
            weights = {n: tensors[f"model.{n}"] for n in names}
            state["state"] = {
                i: {k: tensors[f"adam.{k}.{n}"] for k in ("step", "exp_avg", "exp_avg_sq")}
                for i, n in enumerate(names)
            }
            self.generator.set_state(tensors["generator"])
            self.codec.load_state_dict(weights)
            self.optimizer.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise FormatError(
                f"{self.checkpoint} is damaged ({str(error).splitlines()[0]}); leave out --resume "
                "to start again"
            ) from error
        self.step = step
