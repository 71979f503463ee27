r"""Quality at equal bits: a model compressed in several ways, each compared with the original.

    python benchmarks/quality.py --model MODEL --calibration TEXT --text HELDOUT \
      --output rows.jsonl

One JSON row for each method, variant, rate and seed. Every trial runs the verb `compress`, as a
user would. Rows that the file already has are not measured again, so that a stopped run goes on.
`nwc bench quality` is the same for users; here are the parts of the default as well.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from nwc.cli.quality import provenance
from nwc.cli.trials import WAYS, Judge, Options, options_of, trial

PLAIN: dict[str, Any] = {"waterfill": "columns", "trellis": 0, "rate_weight": 0.0}

METHODS: dict[str, Options] = {
    "nwc default": WAYS["nwc"],
    "nwc paper": WAYS["nwc paper"],
    "ecsq": WAYS["ecsq"],
    # Steps after the columns' d alone, scalar, no price on bits: what WaterSIC does, in a file.
    "watersic style": PLAIN,
    # One part of the default left out.
    "without trellis": {"trellis": 0},
    "without layers and rows": {"waterfill": "columns"},
    "without rows": {"waterfill": "layers"},
    "without a price on bits": {"rate_weight": 0.0},
    # Another choice in one place.
    "4 states": {"trellis": 4},
    "32 states": {"trellis": 32},
    "a sweep": {"sweeps": 1},
    "light": WAYS["nwc light"],
    "distillation": {"distill_tokens": 131_072},
    # One part alone, beside what is called watersic style here.
    "plain and trellis": {"waterfill": "columns", "rate_weight": 0.0},
    "plain and rows": {"trellis": 0, "rate_weight": 0.0},
    "plain and a price": {"waterfill": "columns", "trellis": 0},
    "plain and a sweep": {**PLAIN, "sweeps": 1},
    "plain and distillation": {**PLAIN, "distill_tokens": 131_072},
    "plain and light": {**PLAIN, **WAYS["nwc light"]},
}


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
    judge = Judge(
        model=str(config.model), texts=(str(config.text),), context=config.context,
        max_tokens=config.max_tokens,
    )  # fmt: skip
    calibration = str(config.calibration)
    options = options_of(METHODS[method], variant, bits=bits, calibration=calibration, seed=seed)
    [found] = trial(judge, options)
    row = {"model": config.model.name, "method": method, "variant": variant, "seed": seed}
    return {**row, "asked": bits, **found, **provenance(), "commit": _commit()}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    run(tyro.cli(Quality))
