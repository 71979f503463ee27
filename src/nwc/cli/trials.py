"""A model compressed in some way, and how far it strays: the trial behind every comparison.

A trial runs the verb `compress` as a user would, reads the bits from its output, and judges the
output beside the original. `nwc bench quality`, `benchmarks/` and `experiments/` all use it.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from nwc.calibration.corpus import token_windows
from nwc.cli.arguments import usable_device
from nwc.cli.compress import Compress
from nwc.cli.console import quiet_transformers
from nwc.cli.inspect import inspect_folder
from nwc.compression.source import find_model
from nwc.errors import ConfigError
from nwc.evaluation.perplexity import evaluate
from nwc.evaluation.zero_shot import run_tasks
from nwc.integrations.loading import load_any
from nwc.integrations.tokenizer import tokenizer_of
from nwc.methods.registry import DENSE, MethodName

Options = Mapping[str, Any]
"""Fields of `Compress`."""

WAYS: dict[str, Options] = {
    "nwc": {},
    "nwc light": {"preset": "light"},
    # Six networks of 1 M parameters would be most of a small model's file.
    "nwc paper": {"preset": "paper", "codec_by_reference": True},
    **{name: {"method": name} for name in get_args(MethodName) if name != "nwc"},
}
"""Ways to compress: the method `nwc` in its presets, and every other method of the registry."""

VARIANTS: dict[str, Options] = {
    "data-free": {"data_free": True},
    "feedback": {"no_recovery": True},
    "recovery": {"features": "original"},
    "feedback, compressed features": {"no_recovery": True, "features": "compressed"},
    "recovery, compressed features": {"features": "compressed"},
}
"""How a way is used: without calibration text, with LDLQ alone, with fine-tuning as well."""

AS_IT_COMES = "recovery, compressed features"
"""What the command does when it is given calibration text and nothing else."""


def rates(options: Options, bits: tuple[float, ...], *, data_free: bool = False) -> list[float]:
    """What to ask a way for so as to come near some rates.

    Methods of a few settings are asked for the rates of these, each once; a rate that has no
    setting within half a bit is left out, and so is a method that cannot do without data.

    Example:
        >>> rates({}, (3.0, 4.0)), rates({"method": "rtn"}, (3.0, 4.0))
        ([3.0, 4.0], [3.1484375, 4.15625])
    """
    method = DENSE.get(options.get("method", "nwc"))
    if method is None:
        return list(bits)
    if data_free and method.needs_calibration:
        return []
    nearest = [min(method.settings, key=lambda each: abs(each - wanted)) for wanted in bits]
    near = zip(nearest, bits, strict=True)
    return sorted({float(each) for each, wanted in near if abs(each - wanted) <= 0.5})


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What results are judged by.

    Args:
        model: the original, a folder or a hub name.
        texts: held-out texts, see `calibration.corpus.read_text`.
        context: tokens in a window; the model's own limit, if that is less.
        max_tokens: of each text; 0 takes all.
        tasks: names of tasks.
        task_files: folder of local files that hold them.
        limit: questions of each task at most; 0 takes all.
        device: where to run.
    """

    model: str
    texts: tuple[str, ...]
    context: int = 2048
    max_tokens: int = 0
    tasks: tuple[str, ...] = ()
    task_files: Path | None = None
    limit: int = 0
    device: str = "auto"

    def __call__(self, folder: Path) -> list[dict[str, Any]]:
        """Judge a folder: facts for each text, those of tasks in the first."""
        quiet_transformers()
        original = find_model(self.model)
        device = usable_device(self.device)
        reference = load_any(original, torch.float32, device)
        model = reference
        if folder != original:
            model = load_any(folder, torch.float32, device)
        limit = getattr(model.config, "max_position_embeddings", None) or self.context
        context = min(self.context, limit)
        tokenize = tokenizer_of(original)
        found = []
        for text in self.texts:
            windows = token_windows(text, tokenize, tokens=self.max_tokens, context=context)
            facts = dataclasses.asdict(evaluate(model, windows, reference))
            found.append({"text": Path(text).name, "context": context, **facts})
        if self.tasks:
            scores = run_tasks(
                model, original, list(self.tasks), files=self.task_files, limit=self.limit
            )
            found[0]["tasks"] = {
                score.task.partition(" ")[0]: score.value
                for score in scores
                if score.metric == "acc"
            }
            found[0]["accuracy"] = statistics.fmean(found[0]["tasks"].values())
        return found


def trial(judge: Judge, options: Options) -> list[dict[str, Any]]:
    """Compress, look at the bits, judge, throw away.

    Args:
        judge: of the result; names the model.
        options: fields of `Compress`, without `model` and `output`.

    Returns:
        For each of the judge's texts: `bits` over the compressed tensors, `file_bits` over all
        weights, `seconds` that compression took, and what the judge says.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compressed"
        start = time.perf_counter()
        quiet_transformers()
        Compress(model=judge.model, output=out, device=judge.device, **options).make()
        seconds = time.perf_counter() - start
        bits, file_bits = _bits(out)
        facts = {"bits": bits, "file_bits": file_bits, "seconds": round(seconds, 1)}
        return [{**facts, **found} for found in judge(out)]


def _bits(folder: Path) -> tuple[float, float]:
    """Bits per parameter over the compressed tensors, and over all that hold weights.

    Config and tokenizer are the same whatever the method, and are left out.
    """
    found = inspect_folder(folder)
    bits = found["bits_per_parameter"]
    if found.get("dense"):
        return bits["tensors"], bits["file"]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    count = found["compressed_parameters"] + found["kept_parameters"]
    return bits["tensors"], 8 * size / count


def options_of(
    way: Options, variant: str, *, bits: float, calibration: str | None, seed: int = 0
) -> dict[str, Any]:
    """Fields of `Compress` for a way, used in a variant.

    Raises:
        ConfigError: there is no such variant, or it wants calibration text.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r} is not one of {', '.join(VARIANTS)}")
    found = {**way, **VARIANTS[variant], "bits": bits, "seed": seed}
    if variant == "data-free":
        return found
    if calibration is None:
        raise ConfigError(f"variant {variant!r} wants calibration text; name some, or data-free")
    return {**found, "calibration": calibration}


def ways(names: tuple[str, ...], known: Mapping[str, Options] = WAYS) -> dict[str, Options]:
    """Those of the names.

    Raises:
        ConfigError: there is none of a name.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no method {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in names}
