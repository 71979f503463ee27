"""Token windows from a text file, a JSONL file or a `datasets` name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nwc.calibration.hub import open_dataset
from nwc.errors import CalibrationError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

_CHARACTERS_PER_TOKEN = 16
"""Generous bound: so much text is read for every token that is wanted."""


def read_text(source: str, characters: int) -> str:
    """The beginning of a corpus.

    Args:
        source: path of a text file, of a `.jsonl` file with a `text` field a line, or a name that
            `datasets.load_dataset` takes, as NAME or NAME:CONFIG:SPLIT.
        characters: how much to read at most.

    Raises:
        CalibrationError: there is no such corpus, or no text in it.
    """
    path = Path(source)
    try:
        if path.is_file() and path.suffix in (".jsonl", ".json"):
            text = _join(_jsonl(path), characters)
        elif path.is_file():
            with path.open(encoding="utf-8") as file:
                text = file.read(characters)
        else:
            text = _join(_dataset(source), characters)
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{source} is not UTF-8 text ({error.reason}); convert it first"
        ) from error
    if not text.strip():
        raise CalibrationError(f"{source} holds no text; name a file with some")
    return text


def _join(parts: Iterator[str], characters: int) -> str:
    pieces: list[str] = []
    length = 0
    for part in parts:
        pieces.append(part)
        length += len(part) + 2
        if length >= characters:
            break
    return "\n\n".join(pieces)[:characters]


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CalibrationError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise CalibrationError(
                    f'{path}, line {number} has no string field "text"; '
                    'wanted lines like {"text": "..."}'
                )
            yield row["text"]


def _dataset(source: str) -> Iterator[str]:
    name, rows = open_dataset(source, "a file")
    for row in rows:
        if not isinstance(row.get("text"), str):
            raise CalibrationError(f'data set {name} has columns {sorted(row)}, wanted "text"')
        yield row["text"]


def token_windows(
    source: str, tokenize: Callable[[str], list[int]], *, tokens: int, context: int
) -> Int[Tensor, "windows context"]:
    """Windows of `context` tokens, one after the other from the start of the corpus.

    Args:
        source: see `read_text`.
        tokenize: text to token ids.
        tokens: how many to take at most; 0 takes all there are.
        context: length of a window.

    Raises:
        CalibrationError: the corpus does not fill one window.
    """
    limit = tokens * _CHARACTERS_PER_TOKEN if tokens else 2**31
    ids = tokenize(read_text(source, limit))
    count = (min(tokens, len(ids)) if tokens else len(ids)) // context
    if count == 0:
        raise CalibrationError(
            f"{source} gives {len(ids)} tokens (at most {tokens or 'all'} wanted), one window "
            f"takes {context}: use longer text, more tokens, or a shorter --context"
        )
    return torch.tensor(ids[: count * context], dtype=torch.long).view(count, context)
