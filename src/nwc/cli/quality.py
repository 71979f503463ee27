"""`nwc bench quality`: methods side by side on a user's own model."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro

import nwc
from nwc.cli.arguments import Calibration, Folder, Model, Tokens
from nwc.cli.console import Command, err, out, print_json
from nwc.cli.trials import AS_IT_COMES, WAYS, Judge, Options, options_of, rates, trial, ways
from nwc.errors import ConfigError, FormatError
from nwc.evaluation.benchmark import machine
from nwc.reporting.leaderboard import draw, table

Text = Annotated[str, tyro.conf.arg(metavar="TEXT")]

ROWS, TABLE, PICTURE = "rows.jsonl", "leaderboard.md", "leaderboard.svg"


@dataclass(frozen=True, kw_only=True)
class Quality(Command):
    """Compress a model by several methods at several rates, and compare them with the original.

    Writes rows.jsonl, leaderboard.md and leaderboard.svg into the output folder. What is there
    already is not measured again: a stopped run goes on, and methods can be added later.

    Example: nwc bench quality MODEL --calibration text.txt --text heldout.txt --output FOLDER
    """

    model: Model
    """Folder of safetensors, or a hub name."""
    text: Text
    """Held-out text that the models are compared on: a text file, a .jsonl file with "text"
    fields, or a data set NAME[:CONFIG[:SPLIT]]."""
    output: Folder
    """Folder for the results."""
    calibration: Calibration = None
    """Text to calibrate with; without it all methods go data-free."""
    methods: tuple[str, ...] = tuple(WAYS)
    """Which methods: nwc, nwc light, nwc paper, and all others of nwc compress. The first is what
    the others are set against."""
    bits: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """Bits per parameter over the compressed tensors. Methods of a few settings take the nearest
    within half a bit."""
    no_recovery: bool = False
    """Leave out the fine-tuning of blocks."""
    calibration_tokens: int = 131_072
    """Tokens to calibrate with, at most."""
    context: Tokens = None
    """Tokens in a window, of calibration and of held-out text; default: the model's, at most
    2048."""
    max_tokens: int = 32_768
    """Tokens of held-out text to compare on at most; 0 takes all."""
    seed: int = 0
    """Of everything random."""
    threads: int = 0
    """Threads of the compression; 0 takes a quarter of the cores."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or auto."""
    no_plot: bool = False
    """Leave out the picture, which wants matplotlib."""
    json: bool = False
    """Print the rows as JSON instead of the table."""

    def run(self) -> int:
        """See the class."""
        chosen = ways(self.methods)
        self._check()
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / ROWS
        rows = read_rows(path)
        for number, point in enumerate(todo := self._points(chosen), start=1):
            if any(_identity(row) == tuple(point.values()) for row in rows):
                continue
            err.print(f"{number} of {len(todo)}: {point['method']} at {point['asked']:g} bits")
            row = self._measure(chosen[point["method"]], point)
            rows.append(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self._publish(todo, rows)
        mine = self._publish(todo, rows)
        if self.json:
            print_json(mine)
            return 0
        out.print((self.output / TABLE).read_text(encoding="utf-8"), markup=False)
        return 0

    def _check(self) -> None:
        if not self.methods or not self.bits:
            raise ConfigError("nothing to compare: give --methods and --bits at least one of each")
        if self.max_tokens < 0 or (self.context is not None and self.context < 2):
            raise ConfigError(
                f"--max-tokens is {self.max_tokens} and --context {self.context}, wanted at "
                "least 0 and 2"
            )
        if not self.no_plot and find_spec("matplotlib") is None:
            raise ConfigError(
                "the picture wants matplotlib: pip install "
                '"neural-weight-compression[plots]", or --no-plot'
            )

    @property
    def _variant(self) -> str:
        if self.calibration is None:
            return "data-free"
        return "feedback" if self.no_recovery else AS_IT_COMES

    def _points(self, chosen: dict[str, Options]) -> list[dict[str, Any]]:
        """What to measure, rate by rate, so that a stopped run has something of everything."""
        points = [
            {
                "model": self.model,
                "method": name,
                "variant": self._variant,
                "asked": asked,
                "seed": self.seed,
                "text": Path(self.text).name,
                "max_tokens": self.max_tokens,
            }
            for name, options in chosen.items()
            for asked in rates(options, self.bits, data_free=self.calibration is None)
        ]
        if not points:
            raise ConfigError(
                f"none of {', '.join(chosen)} has a setting near {list(self.bits)} bits"
            )
        return sorted(points, key=lambda point: point["asked"])

    def _measure(self, way: Options, point: dict[str, Any]) -> dict[str, Any]:
        judge = Judge(
            model=self.model, texts=(self.text,), context=self.context or 2048,
            max_tokens=self.max_tokens, device=self.device,
        )  # fmt: skip
        options = options_of(
            way, self._variant, bits=point["asked"], calibration=self.calibration, seed=self.seed
        )
        options |= {"calibration_tokens": self.calibration_tokens, "context": self.context}
        [found] = trial(judge, options | {"threads": self.threads})
        return {**point, **found, **provenance()}

    def _publish(
        self, points: list[dict[str, Any]], rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Write table and picture of the rows that belong to the points; returns these rows."""
        wanted = {tuple(point.values()) for point in points}
        mine = [row for row in rows if _identity(row) in wanted]
        order = {name: i for i, name in enumerate(self.methods)}
        mine.sort(key=lambda row: (order[row["method"]], row["asked"]))
        title = f"{Path(self.model).name}, {self._variant}, on {Path(self.text).name}"
        (self.output / TABLE).write_text(table(mine, title), encoding="utf-8")
        if not self.no_plot:
            draw(mine, title, self.output / PICTURE)
        return mine


IDENTITY = ("model", "method", "variant", "asked", "seed", "text", "max_tokens")


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in IDENTITY)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run; none if there is no such file.

    Raises:
        FormatError: a line is not a row.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FormatError(
                f"{path}, line {number} is not JSON: {error}; remove it, and it is measured again"
            ) from error
        if not isinstance(row, dict) or "method" not in row:
            raise FormatError(f"{path}, line {number} is not a row of results; remove it")
        rows.append(row)
    return rows


def provenance() -> dict[str, Any]:
    """With what and where something was measured."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"nwc": nwc.__version__, "date": date, "machine": machine()}
