"""`nwc train`."""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

import nwc
from nwc.cli.arguments import CodecOutput, Patterns
from nwc.cli.console import Command, err, out, print_json, progress, quiet_transformers
from nwc.codec.config import DEFAULT, LIGHT, PAPER_LAMBDAS, CodecConfig, paper
from nwc.compression.plan import make_plan
from nwc.compression.source import SourceCheckpoint, find_model
from nwc.errors import ConfigError
from nwc.formats.codec_file import save_codec
from nwc.training import trainer
from nwc.training.dataset import ChunkSet, gather
from nwc.training.rate_distortion import rate_distortion


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a codec on the weights of models.

    Example: nwc train --weights MODEL1 MODEL2 --output codec.safetensors
    """

    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL")]
    """Folders of safetensors, or hub names."""
    output: CodecOutput
    """Codec file to write; its card goes beside it as .json, its log as .jsonl."""
    preset: Literal["default", "light", "paper"] = "default"
    """Shape of the codec."""
    lam: int = 1000
    """lambda of preset paper: 30, 50, 100, 300, 1000 or 10000; more is finer."""
    hold_out: Patterns = ()
    """Pattern of tensors to measure on and not to train on; default: every tenth."""
    keep: Patterns = ()
    """Pattern of tensors to leave out."""
    steps: int = 20_000
    """Optimiser steps."""
    batch_chunks: int = 4096
    """Chunks of 16 weights a step."""
    learning_rate: float = 1e-3
    """Of Adam, falling to zero along a cosine."""
    synthetic_fraction: float = 0.25
    """Part of every batch drawn from heavy-tailed mixtures."""
    max_chunks: int = 4_000_000
    """Chunks to hold in memory, drawn at random from larger models."""
    bf16: bool = False
    """Run the transforms in bfloat16."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, kept as OUTPUT.checkpoint."""
    resume: bool = False
    """Continue from the checkpoint."""
    seed: int = 0
    """Of initialisation, sampling and noise; the same seed gives the same file."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch. Results may differ with it in the last bit."""
    json: bool = False
    """Print the card as JSON."""

    def run(self) -> int:
        """See the class."""
        quiet_transformers()
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.output.suffix != ".safetensors":
            raise ConfigError(f"--output is {self.output}, wanted a name ending in .safetensors")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        config = trainer.TrainingConfig(
            steps=self.steps,
            batch_chunks=self.batch_chunks,
            learning_rate=self.learning_rate,
            synthetic_fraction=self.synthetic_fraction,
            seed=self.seed,
            bf16=self.bf16,
            checkpoint_every=self.checkpoint_every,
        )
        shape = self._shape()
        data = self._data()
        run = trainer.Trainer(shape, config, data, self.output.with_suffix(".checkpoint"))
        if self.resume:
            run.resume()
            err.print(f"resuming at step {run.step} of {self.steps}")
        log = self.output.with_suffix(".jsonl")
        with (
            log.open("a" if self.resume else "w") as file,
            progress("training", self.steps) as advance,
        ):
            advance(run.step)
            seen = run.step

            def show(line: trainer.Progress) -> None:
                nonlocal seen
                note = f"loss {line.loss:.4f}  {line.bits_per_weight:.3f} bits"
                advance(line.step - seen, note)
                seen = line.step

            codec = run.run(file, show)
        card = {
            "preset": self.preset,
            "codec": shape.to_dict(),
            "training": dataclasses.asdict(config),
            "weights": [Path(name).name for name in self.weights],
            "hold_out": list(self.hold_out) or "every tenth matrix",
            "chunks": {"train": len(data.train), "held_out": len(data.held_out)},
            "nwc": nwc.__version__,
            "torch": torch.__version__,
            "rate_distortion": rate_distortion(codec.half().float(), data.held_out),
        }
        save_codec(codec, self.output, card)
        if self.json:
            print_json(card)
        else:
            out.print(f"{self.output}: trained on {len(data.train):,} chunks", markup=False)
        return 0

    def _shape(self) -> CodecConfig:
        if self.preset in ("default", "light"):
            return DEFAULT if self.preset == "default" else LIGHT
        if self.lam not in PAPER_LAMBDAS:
            raise ConfigError(f"--lam is {self.lam}, wanted one of {PAPER_LAMBDAS}")
        return paper(self.lam)

    def _data(self) -> ChunkSet:
        train: list[torch.Tensor] = []
        held_out: list[torch.Tensor] = []
        for name in self.weights:
            source = SourceCheckpoint(find_model(name))
            patterns = tuple(p for p in self.keep if fnmatch.filter(source.shapes, p))
            plan = make_plan(source, patterns)
            for i, tensor in enumerate(plan.tensors):
                named = any(fnmatch.fnmatch(tensor.key, p) for p in self.hold_out)
                out_of_it = named if self.hold_out else i % 10 == min(9, len(plan.tensors) - 1)
                W = source.matrix(tensor.key, tensor.transposed)
                (held_out if out_of_it else train).append(W)
        return gather(train, held_out, self.max_chunks, self.seed)
