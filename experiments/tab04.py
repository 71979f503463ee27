r"""Table 4: against truncated singular value decompositions.

    python experiments/tab04.py --scale small --data FOLDER

The ratio is that of the compressed matrices' bits to 16. Scale full is Llama 3-8B; SVD-LLM takes
an hour or two, `nwc` at 4 bits with fine-tuning a night on one GPU.
"""

from __future__ import annotations

import rate_accuracy as ra
import style
from published import printed, rows_of
from runner import Point, Row, main
from world import World

RIVALS = ("svd_llm", "svd_llm_v2")


def points(world: World) -> list[Point]:
    """`nwc` at a quarter of 16 bits; rivals at four fifths, if the registry has them."""
    name = world.pick(tiny="llama", small="stories260K", full="Llama 3-8B")
    return [
        *ra.points(world, name, ("nwc",), bits=(4.0,)),
        *ra.points(world, name, RIVALS, bits=(0.8 * 16,)),
    ]


def table(rows: list[Row]) -> str:
    """Ours, and the paper's beside it."""
    head = ("Method", "Model", "Ratio", "Perplexity", "(original)", "KL", "Accuracy")
    body = [
        (r["method"], r["model"], f"{100 * r['bits'] / 16:.1f} %", r["perplexity"],
         r["reference_perplexity"], r["kl_divergence"], r.get("accuracy"))
        for r in rows
    ]  # fmt: skip
    place = "Table 4"
    theirs = [
        (f"{name} ({place})", "Llama 3-8B", f"{printed(place, name, 'ratio'):g} %",
         printed(place, name, "perplexity"), printed(place, "original", "perplexity"), None,
         printed(place, name, "accuracy"))
        for name in rows_of(place)[1:]
    ]  # fmt: skip
    return style.markdown(head, [*body, *theirs])


EXPERIMENT = ra.experiment("tab04", points, None, table)

if __name__ == "__main__":
    main("tab04")
