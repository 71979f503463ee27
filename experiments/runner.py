r"""Runs the experiments: compute to JSONL, then plot.

    python experiments/runner.py --scale tiny
    python experiments/runner.py --scale small --data FOLDER --only fig03 tab01
    python experiments/fig03.py --scale small --data FOLDER

An experiment is a list of points and a way to measure one. Each gives rows of one JSON file; a
point that has rows already is not measured again, so that a stopped run goes on and the figures
that look at the same trials share them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from world import Scale, World

from nwc.cli.quality import provenance

ROOT = Path(__file__).parent.parent

Row = dict[str, Any]
Point = dict[str, Any]

ALL = (
    "fig03", "fig04", "fig04_vision", "fig05", "fig06", "fig07", "fig08", "fig09", "fig10",
    "fig11", "fig12", "fig13", "fig14", "tab01", "tab02", "tab03", "tab04", "tab05", "tab06",
    "tab07", "ranking", "protocol",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A figure or table of the paper.

    Args:
        name: of its file, figure and table.
        points: what to measure at a scale; a point is what tells its rows from others.
        measure: a point -> rows of facts, without the point's own entries.
        plot: rows -> a figure at a path; None if there is nothing to draw.
        table: rows -> Markdown; None if the figure says it all.
        rows: name of the file of rows, where several experiments share one.
        also: other names of such files to look for rows in.
        earlier: files with rows of the same kind that were measured before.
    """

    name: str
    points: Callable[[World], Sequence[Point]]
    measure: Callable[[World, Point], list[Row]]
    plot: Callable[[list[Row], Path], None] | None = None
    table: Callable[[list[Row]], str] | None = None
    rows: str = ""
    also: tuple[str, ...] = ()
    earlier: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    scale: Scale = "tiny"
    """How much: tiny runs in seconds and its numbers mean nothing."""
    data: Path | None = None
    """Folder with models and text, for scale small."""
    output: Path | None = None
    """Folder for rows and tables; runs/reproduce/SCALE unless told otherwise."""
    figures: Path | None = None
    """Folder for figures; the output unless told otherwise."""
    only: tuple[str, ...] = ALL
    """Which experiments."""
    plot_only: bool = False
    """Measure nothing; draw what is there."""

    @property
    def folder(self) -> Path:
        """Of rows and tables."""
        return self.output or ROOT / "runs" / "reproduce" / self.scale


def run(experiment: Experiment, options: Options, world: World) -> list[Row]:
    """Measure what is missing, draw; returns the experiment's rows."""
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment.rows or experiment.name}.jsonl"
    points = list(experiment.points(world))
    shared = [folder / f"{name}.jsonl" for name in experiment.also]
    files = dict.fromkeys([*experiment.earlier, *shared, path])
    known = [rows for rows in map(read, files) if rows]
    for point in points:
        if options.plot_only or rows_of(point, known):
            continue
        start = time.perf_counter()
        rows = [
            {"scale": world.scale, **point, **facts, **provenance(), "commit": commit()}
            for facts in experiment.measure(world, point)
        ]
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        known.append(rows)
        seconds = time.perf_counter() - start
        print(f"{experiment.name}: {' '.join(map(str, point.values()))}, {seconds:.1f} s",
              flush=True)  # fmt: skip
    mine = [row for point in points for row in rows_of(point, known)]
    if mine:
        publish(experiment, mine, options)
    else:
        print(f"{experiment.name}: nothing to draw at scale {world.scale}", flush=True)
    return mine


def publish(experiment: Experiment, rows: list[Row], options: Options) -> None:
    """Write figure and table."""
    figures = options.figures or options.folder
    figures.mkdir(parents=True, exist_ok=True)
    if experiment.plot is not None:
        experiment.plot(rows, figures / f"{experiment.name}.svg")
    if experiment.table is not None:
        text = experiment.table(rows)
        (options.folder / f"{experiment.name}.md").write_text(text, encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Rows of a file; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(point: Point, known: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows of a point: those of the first file that has any, so that none count twice."""
    for rows in known:
        found = [r for r in rows if all(r.get(key) == value for key, value in point.items())]
        if found:
            return found
    return []


def commit() -> str:
    """What the code is, as far as it is committed."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "none"


def experiment_of(name: str) -> Experiment:
    """The experiment of a file."""
    module = importlib.import_module(name)
    experiment: Experiment = module.EXPERIMENT
    return experiment


def run_all(options: Options) -> dict[str, list[Row]]:
    """Every experiment asked for; rows by name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # Models that took training are worth keeping.
        kept = ROOT / "runs" / "reproduce" / "scratch"
        scratch = Path(folder) if options.scale == "tiny" else kept
        world = World(options.scale, options.data, scratch)
        return {name: run(experiment_of(name), options, world) for name in options.only}


def main(name: str) -> None:
    """Run one experiment from the command line, as its file does."""
    sys.modules.setdefault(name, sys.modules["__main__"])
    run_all(dataclasses.replace(tyro.cli(Options), only=(name,)))


if __name__ == "__main__":
    run_all(tyro.cli(Options))
