"""`nwc inspect` and `nwc verify`."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from nwc.cli.arguments import CodecFile, Compressed
from nwc.cli.console import Command, err, out, print_json, progress
from nwc.cli.report import REPORT_FILE, read_report
from nwc.coding.rate import BitBudget, ideal_bits
from nwc.errors import BitstreamError, FormatError, NWCError
from nwc.formats.checkpoint import Checkpoint
from nwc.kernels.backend import decode_tile


def inspect_folder(folder: Path, codec: Path | None = None) -> dict[str, Any]:
    """Everything that `nwc inspect --json` prints.

    Raises:
        NWCError: the folder is not a result of nwc compress.
    """
    try:
        checkpoint = Checkpoint(folder, codec)
    except FormatError:
        path = folder / REPORT_FILE
        if not path.exists() or not read_report(path).get("dense"):
            raise
        return _dense_inspection(folder)
    return inspection(checkpoint)


def inspection(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is known of a compressed folder."""
    rows = []
    shared = checkpoint.shared_bytes()
    total, compressed = shared, 0
    for key in checkpoint.compressed_keys():
        tensor = checkpoint.compressed(key)
        size = checkpoint.tensor_bytes(key)
        m, n = tensor.shape
        errors = tensor.errors
        total, compressed = total + size, compressed + m * n
        rows.append(
            {
                "name": key,
                "shape": [m, n],
                "bits_per_parameter": 8 * size.total / (m * n),
                "relative_error": None if errors is None else errors.relative,
                "hessian_error": None if errors is None else errors.hessian,
                "damping": None if errors is None else errors.damping,
                "log2_gain": tensor.log2_gain,
                "tiles": len(tensor.stream.tiles),
                "bytes": size.total,
            }
        )
    kept = sum(checkpoint.kept(key).numel() for key in checkpoint.kept_keys())
    return {
        "version": checkpoint.facts["version"],
        "method": checkpoint.facts.get("method"),
        "preset": checkpoint.facts.get("preset"),
        "hash": checkpoint.facts.get("hash"),
        "compressed_parameters": compressed,
        "kept_parameters": kept,
        "file_bytes": checkpoint.file_bytes(),
        "tensor_bytes": total.total,
        "bits_per_parameter": {
            "tensors": 8 * total.total / max(compressed, 1),
            "file": 8 * checkpoint.file_bytes() / max(compressed + kept, 1),
            **total.bits_per(compressed),
        },
        "tensors": rows,
    }


def _dense_inspection(folder: Path) -> dict[str, Any]:
    """What is known of the result of a method without a file format."""
    report = read_report(folder / REPORT_FILE)
    names = (
        "version",
        "method",
        "preset",
        "setting",
        "hash",
        "compressed_parameters",
        "kept_parameters",
    )
    rows = ("name", "shape", "bits_per_parameter", "relative_error", "hessian_error", "damping")
    return {
        **{name: report[name] for name in names},
        "dense": True,
        "file_bytes": sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
        "bits_per_parameter": report["bits_per_parameter"],
        "tensors": [{**{k: t[k] for k in rows}, "bytes": t["bytes"]} for t in report["tensors"]],
    }


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show where the bits of a compressed folder go; decodes nothing.

    Example: nwc inspect OUT
    """

    model: Compressed
    """Compressed folder."""
    codec: CodecFile = None
    """Codec file, for a folder that only refers to one that is not shipped."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """See the class."""
        found = inspect_folder(self.model, self.codec)
        if self.json:
            print_json(found)
            return 0
        bits = found["bits_per_parameter"]
        out.print(
            f"{self.model}: method {found['method']}, version {found['version']}, "
            f"{found['compressed_parameters']:,} weights compressed, "
            f"{found['kept_parameters']:,} kept, {found['file_bytes']:,} bytes",
            markup=False,
        )
        if found.get("dense"):
            out.print(
                f"dense weights: the bits are those of {found['setting']} by the formula of the "
                "method, which has no file format",
                markup=False,
            )
        split = Table("bits per parameter", "", box=None)
        for name in BitBudget.__dataclass_fields__:
            split.add_row(f"  {name}", f"{bits[name]:.4f}")
        split.add_row("compressed tensors, all overheads", f"{bits['tensors']:.4f}")
        split.add_row("whole folder, all parameters", f"{bits['file']:.4f}")
        out.print(split)
        table = Table("tensor", "shape", "bits", "rel. error", "Hessian error", box=None)
        for row in found["tensors"]:
            table.add_row(
                row["name"],
                " x ".join(map(str, row["shape"])),
                f"{row['bits_per_parameter']:.3f}",
                _number(row["relative_error"]),
                _number(row["hessian_error"]),
            )
        out.print(table)
        return 0


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3g}"


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Check every checksum and decode every tile; exit code 1 if anything is damaged.

    Example: nwc verify OUT
    """

    model: Compressed
    """Compressed folder."""
    codec: CodecFile = None
    """Codec file, for a folder that only refers to one that is not shipped."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """See the class."""
        try:
            checkpoint = Checkpoint(self.model, self.codec)
        except NWCError as error:
            return self._report([{"name": str(self.model), "ok": False, "error": str(error)}])
        keys = checkpoint.compressed_keys()
        rows = [self._check("kept tensors", partial(_kept, checkpoint))]
        if "hash" in checkpoint.facts:
            rows.append(self._check("result hash", partial(_hash, checkpoint)))
        with (
            progress("verifying", len(keys)) as advance,
            ThreadPoolExecutor(os.cpu_count()) as executor,
        ):
            for key in keys:
                check = partial(_stream, checkpoint, key, executor)
                rows.append(self._check(key, check))
                advance(1, key)
        return self._report(rows)

    def _check(self, name: str, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return {"name": name, "ok": True, **check()}
        except NWCError as error:
            return {"name": name, "ok": False, "error": str(error)}

    def _report(self, rows: list[dict[str, Any]]) -> int:
        bad = [row for row in rows if not row["ok"]]
        if self.json:
            print_json({"ok": not bad, "tensors": rows})
        else:
            for row in bad:
                err.print(f"damaged: {row['error']}", markup=False, style="red")
            tiles = sum(row.get("tiles", 0) for row in rows)
            verdict = f"{len(bad)} of {len(rows)} tensors damaged" if bad else "everything intact"
            out.print(f"{self.model}: {verdict} ({tiles} tiles decoded)", markup=False)
        return 1 if bad else 0


def _kept(checkpoint: Checkpoint) -> dict[str, Any]:
    checkpoint.check_kept()
    return {"tensors": len(checkpoint.kept_keys())}


def _hash(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"hash": checkpoint.check_hash()}


def _stream(checkpoint: Checkpoint, key: str, executor: ThreadPoolExecutor) -> dict[str, Any]:
    tensor = checkpoint.compressed(key)
    try:
        tensor.weight(executor=executor)
        ideal = ideal_bits(tensor.stream, decode_tile)
    except BitstreamError as error:
        raise BitstreamError(f"{key}: {error}") from error
    return {
        "tiles": len(tensor.stream.tiles),
        "payload_bits": 16 * tensor.stream.head.words,
        "ideal_bits": ideal,
    }
