r"""Table 5: against PocketLLM, at about 3.97 bits, on two texts.

    python experiments/tab05.py --scale small --data FOLDER

Scale full is Llama 2-7B with 4,096 tokens of context: a night for `nwc` with fine-tuning on one
GPU, days for PocketLLM.
"""

from __future__ import annotations

import rate_accuracy as ra
import style
from published import printed, rows_of
from runner import Point, Row, main
from world import World


def points(world: World) -> list[Point]:
    """`nwc` as it comes, and its rival if the registry has it."""
    name = world.pick(tiny="llama", small="stories260K", full="Llama 2-7B")
    return [
        point
        for text in (0, 1)
        for point in [
            *ra.tuned(world, name, bits=(4.0,), text=text),
            *ra.points(world, name, ("pocketllm",), bits=(4.0,), text=text),
        ]
    ]


def table(rows: list[Row]) -> str:
    """Ours, and the paper's beside it."""
    head = ("Method", "Model", "Bits", "Text", "Perplexity", "(original)")
    body = [
        (r["method"], r["model"], r["bits"], r["text"], r["perplexity"],
         r["reference_perplexity"])
        for r in rows
    ]  # fmt: skip
    place = "Table 5"
    for name in rows_of(place)[1:]:
        for text, quantity in (("WikiText-2", "perplexity"), ("C4", "c4_perplexity")):
            body.append(
                (f"{name} ({place})", "Llama 2-7B", printed(place, name, "bits"), text,
                 printed(place, name, quantity), printed(place, "original", quantity))
            )  # fmt: skip
    return style.markdown(head, body)


EXPERIMENT = ra.experiment("tab05", points, None, table)

if __name__ == "__main__":
    main("tab05")
