"""`nwc bench`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import tyro

from nwc.cli.arguments import usable_device
from nwc.cli.compress import compress_folder
from nwc.cli.console import Command, err, out, print_json, quiet_transformers
from nwc.compression.source import find_model
from nwc.errors import ConfigError
from nwc.evaluation.benchmark import bench_tensor
from nwc.evaluation.coding_speed import bench_rans
from nwc.evaluation.generating_speed import bench_generate
from nwc.evaluation.loading_speed import bench_load
from nwc.evaluation.tensor_speed import bench_decode, bench_encode
from nwc.formats.shipped import shipped_codec
from nwc.methods.base import LayerMethod
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed on this machine as ratios within one run.

    rans times entropy coding alone against constriction, one core; decode and encode a whole
    matrix, bytes to BF16 weights and weights to bytes, default and light; load a model from its
    folder to memory against safetensors; generate tokens with a model as it was, decoded while
    loading, and packed; tensor both ways of a matrix with one preset. Nothing is timed before
    every kernel equals its oracle. Formats of other packages are measured where those are
    installed. A suite of its own, nwc bench quality --help, compares methods by
    what they do to a model.

    Example: nwc bench rans --json
    """

    suite: Annotated[
        Literal["rans", "decode", "encode", "load", "generate", "tensor"], tyro.conf.Positional
    ]
    """What to measure."""
    bits: float = 4.0
    """Bits per symbol or weight."""
    size: int = 4096
    """Rows and columns of the matrix; four times the width of the random model (suites load and
    generate)."""
    preset: Literal["default", "light", "paper", "ecsq"] = "default"
    """Codec (suites tensor, load and generate)."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Folder or hub name, compressed or not, instead of random weights (suite generate). What is
    not compressed is compressed data-free in a temporary folder."""
    new_tokens: int = 16
    """Tokens to generate for each text (suite generate)."""
    device: str = "auto"
    """Where models run: cpu, cuda, or auto (suite generate)."""
    repeats: int = 5
    """Counted runs of each side."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """See the class."""
        if not (1 <= self.bits <= 7 and 16 <= self.size <= 16384 and 1 <= self.repeats <= 100):
            raise ConfigError(
                f"--bits {self.bits}, --size {self.size}, --repeats {self.repeats}: wanted 1 to "
                "7, 16 to 16384, 1 to 100"
            )
        if self.new_tokens < 1:
            raise ConfigError(f"--new-tokens is {self.new_tokens}, wanted at least 1")
        # Compressing a folder has a display of its own.
        waiting = (
            nullcontext() if self.suite == "generate" else err.status(f"measuring {self.suite}")
        )
        with waiting:
            found = {"suite": self.suite, **self._measure()}
        if self.json:
            print_json(found)
            return 0
        out.print(found.pop("machine"), markup=False)
        rows = found.pop("rows", [])
        for name, value in found.items():
            pairs = value if isinstance(value, dict) else {"": value}
            for key, number in pairs.items():
                out.print(f"  {name + ' ' + key:50} {_shown(number)}", markup=False)
        if rows:
            out.print("\n" + markdown(rows), markup=False)
        return 0

    def _measure(self) -> dict[str, Any]:
        gain = self.bits - 2.05
        if self.suite == "rans":
            return bench_rans(self.bits, repeats=self.repeats)
        width = max(128, self.size // 4 // 128 * 128)
        if self.suite == "load":
            quiet_transformers()
            return bench_load(self._method(self.preset), gain, width, self.repeats)
        if self.suite == "generate":
            return self._generate(width)
        if self.suite == "tensor":
            found = bench_tensor(self._method(self.preset), gain, self.size, self.repeats)
            return {"preset": self.preset, **found}
        methods = {name: self._method(name) for name in ("default", "light")}
        if self.suite == "decode":
            return bench_decode(methods, gain, self.size, self.repeats)
        return bench_encode({**methods, "ecsq": Ecsq()}, gain, self.size, self.repeats)

    def _generate(self, width: int) -> dict[str, Any]:
        quiet_transformers()
        codec = {"method": "ecsq"} if self.preset == "ecsq" else {"preset": self.preset}
        return bench_generate(
            partial(compress_folder, bits=self.bits, data_free=True, **codec),
            None if self.model is None else find_model(self.model),
            width=width,
            new_tokens=self.new_tokens,
            repeats=self.repeats,
            device=usable_device(self.device),
        )

    def _method(self, preset: str) -> LayerMethod:
        return Ecsq() if preset == "ecsq" else Neural(shipped_codec(preset, self.bits)[0])


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with a column for every key, in the order of their first use.

    Example:
        >>> print(markdown([{"coder": "a", "rate": 2.5}, {"coder": "b", "note": 1}]))
        | coder | rate | note |
        |---|---|---|
        | a | 2.5 |  |
        | b |  | 1 |
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([_shown(row[key]) if key in row else "" for key in keys] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([lines[0], "|---" * len(keys) + "|", *lines[1:]])


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value}"
