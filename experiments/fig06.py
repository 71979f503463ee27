r"""Figure 6: quantisers against the rate-distortion bound.

    python experiments/fig06.py --scale small --data FOLDER

Measured by `rate_distortion.py`, drawn by `plot_rate_distortion.py`; here they join the others.
`small` takes about an hour of one core. Scale full is the same with Llama 3-8B for weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import plot_rate_distortion
import rate_distortion
from runner import ROOT, Experiment, Point, Row, main, read
from world import World

from nwc.compression.source import find_model


def points(world: World) -> list[Point]:
    """One for each scheme and rate; at scale tiny of a Gaussian alone."""
    if world.scale == "tiny":
        return [{"study": "tiny", "asked": 3}]
    return [{"scale": "small", "asked": bits} for bits in (2, 3, 4, 5, 6)]


def measure(world: World, point: Point) -> list[Row]:
    """All schemes at one rate."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        options = {"output": output, "bits": (point["asked"],)}
        if world.scale == "tiny":
            schemes = ("sq", "ecsq", "nwc")
            config = rate_distortion.RateDistortion(
                scale="tiny", sources=("gaussian",), schemes=schemes, **options
            )
        else:
            names = {"small": ("books-llama", "stories15M-adapted"), "full": ("Llama 3-8B",)}
            models = [find_model(world.subjects[n].model) for n in names[world.scale]]
            config = rate_distortion.RateDistortion(models=tuple(models), **options)
        rate_distortion.run(config)
        return read(output)


EXPERIMENT = Experiment(
    name="fig06", points=points, measure=measure, plot=plot_rate_distortion.plot,
    table=plot_rate_distortion.table,
    earlier=(ROOT / "benchmarks" / "results" / "rate_distortion.jsonl",),
)  # fmt: skip

if __name__ == "__main__":
    main("fig06")
