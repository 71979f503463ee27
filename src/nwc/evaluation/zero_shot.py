"""Accuracy on tasks, by lm-evaluation-harness (the extra [eval])."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nwc.errors import ConfigError, FormatError
from nwc.evaluation.tasks import local_file, read_rows, task_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task.

    Args:
        task: its name.
        metric: acc, acc_norm, ...
        value: between 0 and 1 for accuracies.
        stderr: standard error of the mean; None where the harness gives none.
        questions: how many were put.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int


def run_tasks(
    model: PreTrainedModel,
    folder: Path,
    names: list[str],
    *,
    files: Path | None = None,
    limit: int = 0,
    fewshot: int = 0,
    batch_size: int = 8,
) -> list[Score]:
    """Put tasks to a model.

    Args:
        model: a causal language model.
        folder: where its tokenizer lies.
        names: tasks, as the harness names them, or as files are named.
        files: folder of local files (or one file); without, the harness fetches its own data.
        limit: questions of each task at most; 0 takes all.
        fewshot: examples before each question.
        batch_size: questions at once.

    Raises:
        ConfigError: the harness is not installed, or knows no such task.
        FormatError: a file is damaged, or the hub does not give a task's data.
    """
    try:
        import lm_eval
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            '--tasks needs lm-evaluation-harness: pip install "neural-weight-compression[eval]"'
        ) from error
    from transformers import AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks: list[Any] = list(names)
    if files is not None:
        rows = {name: read_rows(local_file(name, files)) for name in names}
        tasks = [ConfigurableTask(config=task_config(name, r)) for name, r in rows.items()]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Only a question without a word needs something before it; some tokenizers have nothing.
    first = tokenizer.bos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        device=str(model.device),
        prefix_token_id=0 if first is None else None,
    )
    try:
        found = lm_eval.simple_evaluate(
            model=harness,
            tasks=tasks,
            num_fewshot=fewshot,
            limit=limit or None,
            bootstrap_iters=100,
            verbosity="ERROR",
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot run {', '.join(names)}: {error}; names are like "
            "arc_easy, piqa, mmlu, or those of files in --task-files"
        ) from error
    except OSError as error:  # which the errors of hub and data sets are
        raise FormatError(
            f"the data of {', '.join(names)} cannot be had: {str(error).splitlines()[0]}; "
            "give local files with --task-files"
        ) from error
    return _scores(found)


def _scores(found: dict[str, Any]) -> list[Score]:
    scores = []
    for task, values in found["results"].items():
        counts = found.get("n-samples", {}).get(task, {})
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or not kind:
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            scores.append(
                Score(
                    task=task,
                    metric=metric,
                    value=float(value),
                    stderr=float(error) if isinstance(error, int | float) else None,
                    questions=int(counts.get("effective", 0)),
                )
            )
    return scores
