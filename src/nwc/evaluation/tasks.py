"""Multiple-choice tasks on local files, put to a model as lm-evaluation-harness puts them.

A file is JSON Lines, an object a line with `question`, `choices` (two or more texts) and `answer`
(index of the right one). MathQA as published, a JSON list whose questions carry their options, and
LAMBADA, lines with `text` whose last word is to be predicted, are read too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nwc.errors import ConfigError, FormatError

Row = dict[str, Any]

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class TaskFormat:
    """How the questions of a task are put.

    Args:
        text: row -> what comes before the answer.
        choices: row -> continuations; None takes the row's own.
        metrics: acc, and acc_norm where likelihoods are also compared per byte.
        description: row -> what precedes the question.
        files: names of files, without suffix, that hold the task.
    """

    text: Callable[[Row], str]
    choices: Callable[[Row], list[str]] | None = None
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    files: tuple[str, ...] = ()


def _question(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer:"


def _lettered(row: Row) -> str:
    options = "\n".join(f"{k}. {c}" for k, c in zip(_LETTERS, row["choices"], strict=False))
    subject = str(row["subject"]).replace("_", " ")
    head = "The following are multiple choice questions (with answers)"
    head += f" about {subject}.\n\n" if subject else ".\n\n"
    return f"{head}{row['question'].strip()}\n{options}\nAnswer:"


FORMATS: dict[str, TaskFormat] = {
    "arc_easy": TaskFormat(text=_question),
    "arc_challenge": TaskFormat(text=_question),
    "piqa": TaskFormat(text=_question),
    "hellaswag": TaskFormat(text=lambda row: row["question"], files=("hellaswag_val",)),
    "openbookqa": TaskFormat(text=lambda row: row["question"]),
    "mathqa": TaskFormat(text=_question),
    "boolq": TaskFormat(
        text=lambda row: f"Question: {row['question']}?\nAnswer:",
        choices=lambda row: ["no", "yes"],
        metrics=("acc",),
    ),
    "mmlu": TaskFormat(
        text=_lettered,
        choices=lambda row: list(_LETTERS[: len(row["choices"])]),
        metrics=("acc",),
    ),
    "winogrande": TaskFormat(text=lambda row: row["question"], metrics=("acc",)),
    "social_iqa": TaskFormat(
        text=lambda row: f"Q: {row['question']}\nA:", metrics=("acc",), files=("social_i_qa",)
    ),
    "lambada": TaskFormat(text=lambda row: row["text"], files=("lambada_test",)),
}
"""By name; a file of any other name is put like `arc_easy`."""


def local_file(task: str, where: Path) -> Path:
    """The file of a task.

    Args:
        task: its name, with - or _.
        where: a folder of files, or the file.

    Raises:
        ConfigError: there is none.
    """
    if where.is_file():
        return where
    plain = task.replace("-", "_")
    names = (plain, *FORMATS[plain].files) if plain in FORMATS else (plain,)
    for path in sorted(where.glob("*.json*")):
        if path.stem.replace("-", "_") in names:
            return path
    there = ", ".join(sorted(path.stem for path in where.glob("*.json*"))) or "none"
    raise ConfigError(f"{where} has no file for task {task}; its tasks are: {there}")


def read_rows(path: Path) -> list[Row]:
    """The questions of a file.

    Raises:
        FormatError: a line is not what the module says.
    """
    rows = [_row(value, f"{path}, {place}") for value, place in _values(path)]
    if not rows:
        raise FormatError(f"{path} holds no question")
    return rows


def _values(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    try:
        if text.lstrip().startswith("["):
            for number, value in enumerate(json.loads(text), start=1):
                yield value, f"question {number}"
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield json.loads(line), f"line {number}"
    except ValueError as error:
        raise FormatError(f"{path} is not JSON Lines: {error}") from error


def _row(value: Any, where: str) -> Row:  # noqa: ANN401  (JSON)
    if isinstance(value, dict) and isinstance(value.get("text"), str) and "choices" not in value:
        if " " not in value["text"].strip():
            raise FormatError(f"{where}: a text of one word, wanted more")
        return {"text": value["text"].strip()}
    if isinstance(value, dict) and "The options:" in str(value.get("instruction")):
        value = _math(value, where)
    wanted = (
        'wanted "question", "choices" (two or more texts) and "answer" (index of the right one)'
    )
    if not isinstance(value, dict) or not isinstance(value.get("question"), str):
        raise FormatError(f"{where}: no question; {wanted}")
    choices, answer = value.get("choices"), value.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) for choice in choices)
    ):
        raise FormatError(f"{where}: choices are {choices!r}; {wanted}")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise FormatError(f"{where}: answer is {answer!r} of {len(choices)} choices; {wanted}")
    subject = str(value.get("subject", ""))
    return {**{key: value[key] for key in ("question", "choices", "answer")}, "subject": subject}


def _math(value: Row, where: str) -> Row:
    """A question of MathQA, whose options are part of its text."""
    question, _, text = str(value["instruction"]).partition("The options:")
    options = _options(text)
    answer = str(value.get("answer")).upper()
    if answer not in options:
        raise FormatError(f"{where}: answer {answer!r} is none of the options {text.strip()!r}")
    choices = list(options.values())
    return {
        "question": question.strip(),
        "choices": choices,
        "answer": list(options).index(answer),
    }


def _options(text: str) -> dict[str, str]:
    """Letter -> option, of a text like "A ) 38 , B ) 30", which may be quoted or lettered twice.

    Example:
        >>> _options("['A ) A ) 2 : 3', 'B ) 4 : 5']")
        {'A': '2 : 3', 'B': '4 : 5'}
    """
    places: list[tuple[str, int, int]] = []
    for letter in "ABCDE":
        found = re.compile(rf"\b{letter} ?\)", re.IGNORECASE).search(
            text, places[-1][2] if places else 0
        )
        if found is None:
            break
        places.append((letter, *found.span()))
    ends = [start for _, start, _ in places[1:]] + [len(text)]
    return {
        letter: re.sub(rf"^\s*{letter} ?\)", "", text[begin:end]).strip(" ,'\"[]")
        for (letter, _, begin), end in zip(places, ends, strict=True)
    }


def task_config(task: str, rows: list[Row]) -> dict[str, Any]:
    """A task as lm-evaluation-harness takes it.

    Args:
        task: its name.
        rows: see `read_rows`.
    """
    from datasets import Dataset

    plain = task.replace("-", "_")
    config: dict[str, Any] = {
        "task": f"{plain} (local)",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "metadata": {"version": 1},
    }
    if "text" in rows[0]:
        return config | {
            "output_type": "loglikelihood",
            "doc_to_text": lambda row: row["text"].rpartition(" ")[0],
            "doc_to_target": lambda row: " " + row["text"].rpartition(" ")[2],
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        }
    style = FORMATS.get(plain, FORMATS["arc_easy"])
    config |= {
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in style.metrics
        ],
    }
    if plain == "winogrande" and all("_" in row["question"] for row in rows):
        # Two sentences, and how likely their common end is after either.
        return config | {
            "doc_to_text": lambda row: row["answer"],
            "doc_to_target": lambda row: row["question"].partition("_")[2].strip(),
            "doc_to_choice": lambda row: [
                row["question"].partition("_")[0] + choice for choice in row["choices"]
            ],
        }
    return config | {
        "doc_to_text": style.text,
        "doc_to_choice": style.choices or (lambda row: row["choices"]),
        "doc_to_target": lambda row: row["answer"],
    }
