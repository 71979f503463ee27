"""How exactly the bits asked for are hit.

    python benchmarks/rate.py --output rows.jsonl --model MODEL:TEXT OTHER: ...

One JSON row for each model, method and target, through the command. A model without a text is
compressed data-free. Rows that the file has are not measured again.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

WAYS = {
    "nwc": "",
    "ecsq": "--method ecsq",
    "nwc, feedback": "--no-recovery --calibration-tokens 32768",
    # Fine-tuned, but briefly: what counts here is that it happens before the coding.
    "nwc, recovery": "--recovery-steps 8 --calibration-tokens 32768",
}
TARGETS = tuple(2 + i / 2 for i in range(11))


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What to measure."""

    model: tuple[str, ...]
    """Folder and calibration text, with a colon between; no text means data-free."""
    output: Path
    """JSONL file to add rows to."""
    bits: tuple[float, ...] = TARGETS
    """Targets."""
    way: tuple[str, ...] = ("nwc", "ecsq")
    """Ways to compress, of `WAYS`."""


def run(config: Rate) -> None:
    """Measure what the output lacks, then print the worst of each model."""
    config.output.touch()
    rows = [json.loads(line) for line in config.output.read_text().splitlines()]
    done = {(row["model"], row["way"], row["asked"]) for row in rows}
    for pair, way, bits in itertools.product(config.model, config.way, config.bits):
        folder, _, text = pair.partition(":")
        name = f"{Path(folder).name}{'' if text else ' (data-free)'}"
        if (name, way, bits) in done:
            continue
        how = ["--calibration", text] if text else ["--data-free"]
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                sys.executable, "-m", "nwc", "compress", folder, "--output", f"{scratch}/out",
                "--bits", str(bits), "--json", *how, *WAYS[way].split(),
            ]  # fmt: skip
            done_run = subprocess.run(command, capture_output=True)
        if done_run.returncode:
            row = {"error": done_run.stderr.decode().strip().splitlines()[-1]}
        else:
            found = json.loads(done_run.stdout)["bits_per_parameter"]["tensors"]
            row = {"bits": found, "deviation": found / bits - 1}
        row = {"model": name, "way": way, "asked": bits, **row}
        rows.append(row)
        with config.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
    for key in dict.fromkeys((row["model"], row["way"]) for row in rows):
        mine = [r for r in rows if (r["model"], r["way"]) == key and "deviation" in r]
        if mine:
            worst = max(mine, key=lambda r: abs(r["deviation"]))
            print(f"{key[0]:32} {key[1]:28} {worst['deviation']:+.3%} at {worst['asked']:g}")


if __name__ == "__main__":
    run(tyro.cli(Rate))
