"""A model's own tokenizer as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nwc.errors import ConfigError


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401  (PreTrainedTokenizerBase)
    """The model's tokenizer.

    Raises:
        ConfigError: the folder has none that loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # raised by several libraries
        raise ConfigError(
            f"{folder} has no tokenizer that loads ({str(error).splitlines()[0]}); add its "
            "tokenizer files"
        ) from error


def tokenizer_of(folder: Path) -> Callable[[str], list[int]]:
    """The model's tokenizer as a function from text to ids.

    Raises:
        ConfigError: the folder has none that loads.
    """
    tokenizer = load_tokenizer(folder)

    def tokenize(text: str) -> list[int]:
        # Windows are cut afterwards: the length of the whole text is nothing to warn about.
        return tokenizer(text, verbose=False).input_ids

    return tokenize
