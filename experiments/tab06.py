r"""Table 6: spread over three seeds.

    python experiments/tab06.py --scale small --data FOLDER

The paper's seeds train three codecs. Our codec ships with the package; what is random for a user
is the order of text in fine-tuning, and that is what is spread here. Scale full is Llama 3-8B at
three rates, nine nights on one GPU.
"""

from __future__ import annotations

import statistics

import rate_accuracy as ra
import style
from published import printed, rows_of
from runner import ROOT, Experiment, Point, Row, main
from world import World

PRINTED_BITS = (3.96, 4.80, 5.98)


def points(world: World) -> list[Point]:
    """Fine-tuned on the original model's features, as in the paper."""
    name = world.pick(tiny="llama", small="stories15M-adapted", full="Llama 3-8B")
    bits = {"tiny": (3.0,), "small": (3.0, 4.0), "full": PRINTED_BITS}[world.scale]
    seeds = (0, 1) if world.scale == "tiny" else (0, 1, 2)
    return ra.points(world, name, ("nwc",), variant="recovery", bits=bits, seeds=seeds)


def table(rows: list[Row]) -> str:
    """Standard deviations of ours and of theirs."""
    head = ("Model", "Text", "Bits", "Seeds", "Perplexity", "its deviation", "KL", "its deviation")
    body: list[tuple[object, ...]] = []
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["text"], row["asked"]), []).append(row)
    for (model, text, _), mine in groups.items():
        both = [[row[name] for row in mine] for name in ("perplexity", "kl_divergence")]
        bits = statistics.fmean(row["bits"] for row in mine)
        spread = [x for each in both for x in (statistics.fmean(each), statistics.stdev(each))]
        body.append((model, text, bits, len(mine), *spread))
    for name in rows_of("Table 6"):
        for text, quantity in (("WikiText-2", "perplexity"), ("C4", "c4_perplexity")):
            deviation = printed("Table 6", name, quantity)
            body.append(("Llama 3-8B (Table 6)", text, name, 3, None, deviation, None, None))
    return style.markdown(head, body)


EXPERIMENT = Experiment(
    name="tab06", points=points, measure=ra.measure, table=table, rows="rate_accuracy",
    earlier=(ROOT / "benchmarks" / "results" / "recovery.jsonl",),
)  # fmt: skip

if __name__ == "__main__":
    main("tab06")
