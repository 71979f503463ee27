"""A report as the README.md that model hubs show."""

from __future__ import annotations

import json
import re
from typing import Any

from nwc.reporting import summary, text

# What Markdown and HTML, in any dialect, may take for more than a letter.
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#!|~^$@&\"=]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_WARNINGS = 50
_LINES = "\n\t"


def render_card(report: dict[str, Any]) -> str:
    """A model card: front matter for the hub, figures, warnings, and how to load and repeat.

    Args:
        report: one that `check_report` accepts.
    """
    name = literal(report["model"]["name"])
    parts = [
        _front_matter(report["model"]),
        f"# {name}, compressed\n",
        f"The weights of {name}, compressed with Neural Weight Compression. The folder holds a "
        "checkpoint that nwc reads; it is smaller than the original on disk and when it is sent, "
        "not in memory.\n",
        _table(("", ""), _figures(report)),
        *_warnings(report["warnings"]),
        _LOADING,
        *_making(report),
    ]
    return "\n".join(parts)


def literal(foreign: str) -> str:
    r"""Text of unknown origin for inside a line of Markdown, where it means only itself.

    Example:
        >>> literal("a|b\n<i>")
        'a&#124;b&#92;n&#60;i&#62;'
    """
    return _MARKUP.sub(lambda m: f"&#{ord(m.group())};", " ".join(text.plain(foreign).split()))


def quoted(foreign: str) -> str:
    """Text of unknown origin as a double-quoted scalar of YAML."""
    return json.dumps(text.plain(foreign), ensure_ascii=False)


def fenced(foreign: str, language: str) -> str:
    """Text of unknown origin as a code block, whose fence is longer than any in it."""
    longest = max(map(len, re.findall("`+", foreign)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.plain(foreign, keep=_LINES)}\n{fence}\n"


def _front_matter(model: dict[str, Any]) -> str:
    lines = ["---"]
    licence = model["license"]
    if licence and _LICENCE.fullmatch(licence.lower()):
        lines.append(f"license: {quoted(licence.lower())}")
    elif licence:
        lines += ["license: other", f"license_name: {quoted(licence)}"]
    # A hub takes nothing else for a model; the folder may have any name.
    if _HUB_NAME.fullmatch(model["name"]):
        lines.append(f"base_model: {quoted(model['name'])}")
    return "\n".join([*lines, "library_name: nwc", "tags:", "- nwc", "- compressed", "---\n"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _figures(report: dict[str, Any]) -> list[tuple[str, ...]]:
    bits, model = report["bits_per_parameter"], report["model"]
    ratio = summary.ratio(report)
    preset = report["preset"]
    asked = "the whole folder" if report["target"] == "file" else "compressed tensors"
    rows = [
        ("Architecture", literal(model["architecture"] or "unknown")),
        ("Method", literal(report["method"] + (f", preset {preset}" if preset else ""))),
        ("Calibration", _calibration(report)),
        ("Bits per parameter, compressed tensors, all overheads", text.bits(bits["tensors"])),
        ("Bits per parameter, whole folder", text.bits(bits["file"])),
        ("Bits per parameter asked for", f"{text.figure(report['target_bits'])} over {asked}"),
        ("Bytes", text.count(report["file_bytes"])),
        ("Bytes of the original", text.count(report["original_bytes"])),
        ("Ratio", text.UNKNOWN if ratio is None else f"{text.figure(ratio)}"),
        ("Parameters compressed", text.count(report["compressed_parameters"])),
        ("Parameters kept as they were", text.count(report["kept_parameters"])),
        (
            "Mean relative error of the weights",
            text.percent(summary.mean(report["tensors"], "relative_error")),
        ),
        ("Hash of the result", literal(report["hash"] or "unknown")),
    ]
    return [row for row in rows if report["target_bits"] is not None or "asked" not in row[0]]


def _calibration(report: dict[str, Any]) -> str:
    found = report["calibration"]
    if not report["calibrated"]:
        return "none: data-free"
    if found is None:
        return "calibrated, text not stated"
    return f"{text.count(found['tokens'])} tokens of {literal(found['source'] or 'unknown text')}"


def _warnings(warnings: list[str]) -> list[str]:
    if not warnings:
        return []
    # The words before it keep a warning that begins with "1." or "-" from becoming a list.
    lines = [f"- Warning: {literal(warning)}" for warning in warnings[:_WARNINGS]]
    if len(warnings) > _WARNINGS:
        lines.append(f"- And {len(warnings) - _WARNINGS:,} more, all in report.json.")
    return ["## Warnings\n", "\n".join(lines) + "\n"]


_LOADING = """## Load it

```python
import nwc

model = nwc.load_model("path/to/this/folder")  # a transformers model with dense weights, BF16
```

```sh
nwc verify path/to/this/folder                              # every checksum, every tile
nwc decompress path/to/this/folder --output MODEL-restored  # an ordinary checkpoint
```
"""


def _making(report: dict[str, Any]) -> list[str]:
    command = report["command"]
    versions = [("nwc", report["nwc"]), ("file", report["version"]), *report["versions"].items()]
    return [
        "## How it was made\n",
        fenced(command, "sh") if command else "The command is not known.\n",
        _table(
            ("Software", "Version"),
            [(literal(name), literal(version or "unknown")) for name, version in versions],
        ),
    ]
