r"""How perplexity is measured, checked against a published number.

    python experiments/protocol.py --scale small --data FOLDER

stories260K was published with a loss of 1.297 nats, perplexity 3.66, on the validation stories of
TinyStories at 512 tokens. Its training began every story with the token <s>, so the same must be
done here; what else could matter is varied. `nwc eval` reads a text as it is.
"""

from __future__ import annotations

from pathlib import Path

import style
import torch
from layers import layers_of
from runner import Experiment, Point, Row, main
from torch import Tensor
from world import World

from nwc.evaluation.perplexity import evaluate, strided
from nwc.integrations.tokenizer import tokenizer_of

PUBLISHED = 3.66

JOINS = ("text as it is", "<s> before every story", "<s> and </s> around every story")
SPANS = (20_000, 60_000)
STRIDES = (0, 256)


def points(world: World) -> list[Point]:
    """Ways to join stories, spans, strides."""
    name = {"tiny": "llama", "small": "stories260K", "full": ""}[world.scale]
    spans = SPANS[:1] if world.scale == "tiny" else SPANS
    return [
        {"model": name, "stories": join, "tokens": tokens, "stride": stride}
        for join in JOINS
        for tokens in spans
        for stride in STRIDES
        if name
    ]


def measure(world: World, point: Point) -> list[Row]:
    """Perplexity under one protocol."""
    layers = layers_of(world, point["model"])
    context = 64 if world.scale == "tiny" else 512
    tokens = 512 if world.scale == "tiny" else point["tokens"]
    text = Path(layers.subject.calibration).read_text(encoding="utf-8")[: 16 * tokens]
    ids = torch.tensor(joined(text, tokenizer_of(layers.folder), point["stories"])[:tokens])
    windows = ids[: len(ids) // context * context].view(-1, context)
    scored: Tensor | None = None
    if point["stride"]:
        windows, scored = strided(windows, min(point["stride"], context // 2))
    found = evaluate(layers.model, windows, scored=scored)
    return [{"perplexity": found.perplexity, "predicted": found.tokens, "context": context}]


def joined(text: str, tokenize: object, how: str) -> list[int]:
    """Token ids of stories, joined in one of the ways."""
    assert callable(tokenize)
    if how == JOINS[0]:
        return list(tokenize(text))
    ids: list[int] = []
    for story in filter(None, (part.strip() for part in text.split("<|endoftext|>"))):
        # The tokenizer puts <s> first by itself, if it is one that does.
        ids += tokenize(story)
        ids += [2] if how == JOINS[2] else []
    return ids


def table(rows: list[Row]) -> str:
    """All ways, the published number last."""
    body = [(r["stories"], r["tokens"], r["stride"] or "none", r["perplexity"]) for r in rows]
    head = ("Stories", "Tokens", "Stride", "Perplexity")
    return style.markdown(head, [*body, ("published", "validation set", "", PUBLISHED)])


EXPERIMENT = Experiment(name="protocol", points=points, measure=measure, table=table)

if __name__ == "__main__":
    main("protocol")
