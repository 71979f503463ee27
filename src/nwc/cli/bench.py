"""`nwc bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from nwc.cli.console import Command, err, out, print_json
from nwc.errors import ConfigError
from nwc.evaluation.benchmark import bench_rans, bench_tensor
from nwc.formats.shipped import shipped_codec
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed on this machine, one core, as ratios within one run.

    rans times entropy coding alone against constriction; tensor times a whole matrix, weights to
    bytes and back, against reading it with safetensors. A suite of its own, nwc bench quality
    --help, compares methods by what they do to a model.

    Example: nwc bench rans --json
    """

    suite: Annotated[Literal["rans", "tensor"], tyro.conf.Positional]
    """What to measure."""
    bits: float = 4.0
    """Bits per symbol or weight."""
    size: int = 4096
    """Rows and columns of the matrix (suite tensor)."""
    preset: Literal["default", "light", "paper", "ecsq"] = "default"
    """Codec (suite tensor)."""
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
        with err.status(f"measuring {self.suite}"):
            found = self._measure()
        if self.json:
            print_json(found)
            return 0
        out.print(found.pop("machine"), markup=False)
        for name, value in found.items():
            rows = value if isinstance(value, dict) else {"": value}
            for key, number in rows.items():
                shown = f"{number:,.4g}" if isinstance(number, float) else f"{number}"
                out.print(f"  {name + ' ' + key:50} {shown}", markup=False)
        return 0

    def _measure(self) -> dict[str, Any]:
        if self.suite == "rans":
            return {"suite": "rans", **bench_rans(self.bits, repeats=self.repeats)}
        gain = self.bits - 2.05
        if self.preset == "ecsq":
            found = bench_tensor(Ecsq(), gain, self.size, self.repeats)
        else:
            codec, _ = shipped_codec(self.preset, self.bits)
            found = bench_tensor(Neural(codec), gain, self.size, self.repeats)
        return {"suite": "tensor", "preset": self.preset, **found}
