r"""Quality at equal bits: a model compressed in several ways, each compared with the original.

    python benchmarks/quality.py --model MODEL --calibration TEXT --text HELDOUT \
      --output rows.jsonl

One JSON row for each method, variant, rate and seed. Everything goes through the command, as a
user would do it. Rows that the file already has are not measured again, so that a stopped run
goes on.
"""

from __future__ import annotations

import datetime
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import nwc
from nwc.evaluation.benchmark import machine

PLAIN = ("--waterfill", "columns", "--trellis", "0", "--rate-weight", "0")

METHODS: dict[str, tuple[str, ...]] = {
    "nwc default": (),
    # Six networks of 1 M parameters would be most of a small model's file.
    "nwc paper": ("--preset", "paper", "--codec-by-reference"),
    "ecsq": ("--method", "ecsq"),
    # Steps after the columns' d alone, scalar, no price on bits: what WaterSIC does, in a file.
    "watersic style": PLAIN,
    # One part of the default left out.
    "without trellis": ("--trellis", "0"),
    "without layers and rows": ("--waterfill", "columns"),
    "without rows": ("--waterfill", "layers"),
    "without a price on bits": ("--rate-weight", "0"),
    # Another choice in one place.
    "4 states": ("--trellis", "4"),
    "32 states": ("--trellis", "32"),
    "a sweep": ("--sweeps", "1"),
    "light": ("--preset", "light"),
    "distillation": ("--distill-tokens", "131072"),
    # One part alone, beside what is called watersic style here.
    "plain and trellis": ("--waterfill", "columns", "--rate-weight", "0"),
    "plain and rows": ("--trellis", "0", "--rate-weight", "0"),
    "plain and a price": ("--waterfill", "columns", "--trellis", "0"),
    "plain and a sweep": (*PLAIN, "--sweeps", "1"),
    "plain and distillation": (*PLAIN, "--distill-tokens", "131072"),
    "plain and light": (*PLAIN, "--preset", "light"),
}

VARIANTS: dict[str, tuple[str, ...]] = {
    "data-free": (),
    "feedback": ("--no-recovery",),
    "recovery": ("--features", "original"),
    "feedback, compressed features": ("--no-recovery", "--features", "compressed"),
    "recovery, compressed features": ("--features", "compressed"),
}
"""How a method is used: without calibration text, with LDLQ alone, with fine-tuning as well."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What to measure."""

    model: Path
    """Folder of the original."""
    calibration: Path
    """Text to calibrate with."""
    text: Path
    """Held-out text."""
    output: Path
    """JSONL file to add rows to."""
    bits: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """Bits per parameter over the compressed tensors."""
    methods: tuple[str, ...] = tuple(METHODS)[:3]
    """Which of the methods."""
    variants: tuple[str, ...] = ("feedback", "data-free")
    """Which of the variants."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of fine-tuning."""
    context: int = 256
    """Tokens in a window of the held-out text."""
    max_tokens: int = 30_000
    """Tokens of held-out text."""


def run(config: Quality) -> None:
    """Measure what the output lacks."""
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.touch()
    rows = [json.loads(line) for line in config.output.read_text().splitlines()]
    done = {(r["model"], r["method"], r["variant"], r["asked"], r["seed"]) for r in rows}
    for point in itertools.product(config.variants, config.bits, config.methods, config.seeds):
        variant, bits, method, seed = point
        if (config.model.name, method, variant, bits, seed) not in done:
            row = _measure(config, method, variant, bits, seed)
            with config.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def _measure(config: Quality, method: str, variant: str, bits: float, seed: int) -> dict[str, Any]:
    calibrated = variant != "data-free"
    how = ("--calibration", str(config.calibration)) if calibrated else ("--data-free",)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "compressed")
        made = _nwc(
            "compress", str(config.model), "--output", out, "--bits", str(bits), "--json",
            "--seed", str(seed), *how, *METHODS[method], *VARIANTS[variant],
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = _nwc(
            "eval", out, "--reference", str(config.model), "--text", str(config.text), "--json",
            "--context", str(config.context), "--max-tokens", str(config.max_tokens),
        )  # fmt: skip
    return {
        "model": config.model.name,
        "method": method,
        "variant": variant,
        "seed": seed,
        "asked": bits,
        "bits": made["bits_per_parameter"]["tensors"],
        "file_bits": made["bits_per_parameter"]["file"],
        "seconds": round(seconds, 1),
        **found,
        "text": config.text.name,
        "nwc": nwc.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
    }


def _nwc(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "nwc", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    run(tyro.cli(Quality))
