"""The end of `nwc compress`: finished units become a folder with a report."""

from __future__ import annotations

import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nwc.cli.inspect import inspection
from nwc.cli.report import REPORT_FILE, read_report
from nwc.coding.bitstream import rebank
from nwc.coding.tables import TableBank
from nwc.compression.pipeline import CompressedUnit
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import WorkFolder
from nwc.errors import NWCError
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.layout import MAJOR, MINOR
from nwc.formats.writer import CheckpointWriter
from nwc.reporting.model_card import render_card

if TYPE_CHECKING:
    from nwc.cli.preparation import Preparation

CARD = "README.md"
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_SLACK = 64
"""Empty lines at the end of the card at most."""

PUBLISHED = "published.json"
"""In the work folder: hash of the result, before it takes its place."""


def write_result(
    preparation: Preparation, units: list[CompressedUnit], *, replace: bool
) -> list[str]:
    """Write the output folder, replacing one if that is allowed; returns warnings."""
    distilled, distillation = preparation.distilled(units)
    options, source, plan = preparation.options, preparation.source, preparation.plan
    tensors = {t.name: t for t in plan.tensors}
    tuned: dict[str, Tensor] = {}
    blocks: list[dict[str, Any]] = []
    about: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for unit in units:
        changed, history = unit.tuned()
        tuned |= changed
        if history:
            blocks.append({"block": unit.block, "groups": history})
    tuned |= distilled
    with CheckpointWriter(
        options.output, source.folder, overwrite=replace,
        scratch=preparation.work.path / "output",
    ) as writer:  # fmt: skip
        writer.add_codec(preparation.job.method.codec, preparation.reference)
        for key in sorted(plan.kept, key=lambda k: -source.tensor_itemsize(k)):
            writer.add_kept(key, tuned.get(key, source.tensor(key)))
        bank = TableBank()
        for unit in units:
            for group in unit.groups():
                warnings += group.warnings
                for finished in group.tensors:
                    about[finished.name] = finished.facts()
                    planned = tensors[finished.name]
                    data = rebank(finished.data, group.bank, bank)
                    writer.add_stream(planned.key, data, planned.part)
        scratch = writer.finish_checkpoint(bank, _config(source), preparation.facts)
        checkpoint = Checkpoint(scratch, options.codec)
        found = inspection(checkpoint)
        report = make_report(preparation, found, about, blocks, warnings)
        report["distillation"] = distillation
        report["hash"] = checkpoint.facts["hash"]
        preparation.work.write_json(PUBLISHED, report["hash"])
        writer.publish(_files(report, found["file_bytes"]))
    return warnings + _damping(about)


def _config(source: SourceCheckpoint) -> dict[str, Any] | None:
    """The model's config.json, with its dtype.

    Where it names none, transformers takes that of the first tensor that is a float; in a
    compressed file that would be the codec's.
    """
    config = source.config
    if config is None or config.get("dtype") or config.get("torch_dtype"):
        return config
    found = next((_DTYPE_NAMES[d] for d in source.dtypes.values() if d in _DTYPE_NAMES), None)
    return config if found is None else {**config, "dtype": found}


def is_published(work: Path, output: Path) -> bool:
    """Whether an output is the result of the run whose state is still beside it."""
    try:
        return _hash(output) == WorkFolder(work).read_json(PUBLISHED)
    except (NWCError, KeyError, ValueError):
        return False


def _hash(folder: Path) -> str:
    report = read_report(folder / REPORT_FILE)
    return report["hash"] if report.get("dense") else Checkpoint(folder).facts["hash"]


def make_report(
    preparation: Preparation,
    found: dict[str, Any],
    about: dict[str, dict[str, Any]],
    blocks: list[dict[str, Any]],
    warnings: list[str],
) -> dict[str, Any]:
    """Everything that is known of a compression.

    Args:
        preparation: the run.
        found: see `cli.inspect.inspection`.
        about: name of every compressed matrix -> facts.
        blocks: what fine-tuning did.
        warnings: for the user.
    """
    options, plan, source = preparation.options, preparation.plan, preparation.source
    sizes = {row["name"]: row for row in found["tensors"]}
    config = source.config or {}
    calibration = None
    if preparation.windows is not None:
        context = preparation.window_tokens
        calibration = {
            "source": str(options.calibration),
            "tokens": len(preparation.windows) * context,
            "context": context,
        }
    return {
        "version": f"{MAJOR}.{MINOR}",
        **preparation.facts,
        "command": command(preparation),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "numpy": np.__version__,
        },
        "model": {
            "name": preparation.folder.name,
            "architecture": (config.get("architectures") or [None])[0],
            "license": _license(preparation.folder),
        },
        "target_bits": preparation.asked,
        "target": "tensors" if options.file_bits is None else "file",
        "calibration": calibration,
        "hash": "0" * 16,
        "original_bytes": preparation.source_bytes,
        "file_bytes": found["file_bytes"],
        "compressed_parameters": found["compressed_parameters"],
        "kept_parameters": found["kept_parameters"],
        "bits_per_parameter": found["bits_per_parameter"],
        "tensors": [
            {
                "name": t.name,
                "block": t.block,
                "kind": None if t.block is None else t.label,
                "shape": [t.m, t.n],
                "bits_per_parameter": sizes[t.name]["bits_per_parameter"],
                "bytes": sizes[t.name]["bytes"],
                "relative_error": about[t.name]["relative"],
                "hessian_error": about[t.name]["hessian"],
                **{k: about[t.name][k] for k in ("tokens", "damping", "log2_gain")},
                "error_by_importance": about[t.name]["by_importance"],
            }
            for t in plan.tensors
        ],
        "blocks": [_block(block) for block in blocks],
        "distillation": None,
        "kept": [
            {
                "name": key,
                "shape": list(source.shapes[key]),
                "dtype": source.dtypes[key],
                "bytes": source.size(key),
                "why": why,
            }
            for key, why in plan.kept.items()
        ],
        "warnings": warnings + _damping(about),
    }


def draft_files(preparation: Preparation) -> dict[str, str]:
    """The report's files with numbers made up, to know beforehand how large they will be."""
    plan = preparation.plan
    sample = 1.23456e-3
    calibrated = preparation.windows is not None
    facts: dict[str, Any] = {
        "relative": sample,
        "hessian": sample if calibrated else None,
        "tokens": 131072 if calibrated else None,
        "damping": 0.001 if calibrated else None,
        "log2_gain": 1.23456,
        "by_importance": [sample] * 10 if calibrated else None,
    }
    size = {"bits_per_parameter": 4.12345, "bytes": 100_000}
    bits = ("tensors", "file", "payload", "tables", "index", "patches", "scales", "levels")
    found: dict[str, Any] = {
        "file_bytes": preparation.source_bytes // 4,
        "compressed_parameters": plan.parameters,
        "kept_parameters": 10**6,
        "bits_per_parameter": dict.fromkeys((*bits, "codec", "headers"), 4.12345),
        "tensors": [{"name": t.name, **size} for t in plan.tensors],
    }
    blocks = []
    if preparation.job.recovery is not None:
        group = {"name": "gate_proj, up_proj", "before": sample, "after": sample, "steps": 64}
        blocks = [{"block": u[0].block, "groups": [dict(group)] * 3} for u in plan.units]
    report = make_report(preparation, found, {t.name: facts for t in plan.tensors}, blocks, [])
    return _files(report, found["file_bytes"])


def _files(report: dict[str, Any], others: int) -> dict[str, str]:
    """The report's files; they count themselves among the bytes of the folder.

    Args:
        report: see `make_report`.
        others: bytes of all other files.
    """
    everything = report["compressed_parameters"] + report["kept_parameters"]
    size = others
    while True:
        report["file_bytes"] = size
        report["bits_per_parameter"]["file"] = 8 * size / everything
        files = card_and_report(report)
        found = others + sum(len(text.encode()) for text in files.values())
        # A digit more or less in the sum changes the sum: the card's last lines take it up.
        if 0 <= size - found < _SLACK:
            files[CARD] += "\n" * (size - found)
            return files
        size = max(size + 1, found)


def card_and_report(report: dict[str, Any]) -> dict[str, str]:
    """The report as a model card and as JSON, by the names of their files."""
    return {CARD: render_card(report), REPORT_FILE: _dump(_rounded(report))}


def _dump(report: dict[str, Any]) -> str:
    """JSON with a line for every entry of a list, so that it can be read and compared."""
    lines = []
    for key, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n  {rows}\n ]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _rounded(value: Any) -> Any:  # noqa: ANN401  (JSON)
    """Numbers with six digits; NaN, which JSON lacks, becomes null."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value


def command(preparation: Preparation) -> str:
    """The command that makes the same bytes; what does not decide them is left out."""
    options = preparation.options
    words = ["nwc", "compress", options.model, "--output", "OUT"]
    kind = "--bits" if options.file_bits is None else "--file-bits"
    words += [kind, f"{preparation.asked:g}"]
    defaults = type(options).__dataclass_fields__
    for name in ("method", "preset", "profile", "waterfill", "survey_tokens", "trellis",
                 "rate_weight", "sweeps", "features", "seed", "recovery_steps", "distill_tokens",
                 "calibration", "calibration_tokens", "context", "codec", "threads"):  # fmt: skip
        value = getattr(options, name)
        if value != defaults[name].default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("data_free", "no_recovery", "recovery", "codec_by_reference"):
        if getattr(options, name):
            words.append(f"--{name.replace('_', '-')}")
    for pattern in options.keep:
        words += ["--keep", pattern]
    return shlex.join(words)


def _block(block: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {**group, "kept": group["steps"] > 0, "note": "" if group["steps"] else "did not help"}
        for group in block["groups"]
    ]
    return {**block, "groups": groups}


def _damping(about: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{name} needed damping {facts['damping']} of mean(diag H)"
        for name, facts in about.items()
        if (facts["damping"] or 0) > 0.001
    ]


def _license(folder: Path) -> str | None:
    """What the front matter of the model's card says."""
    card = folder / CARD
    if not card.exists():
        return None
    for line in card.read_text(errors="replace").splitlines()[:60]:
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("'\"") or None
    return None
