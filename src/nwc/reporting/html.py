"""A report as one page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from nwc.reporting import figures, summary, text

ROWS = 200
"""Rows of a table; report.json holds the others."""


@dataclass(frozen=True)
class Column:
    """A column of the table of tensors that is left out where nothing in it is known."""

    title: str
    key: str
    form: Callable[[float | None], str]


COLUMNS = (
    Column("Hessian error", "hessian_error", text.figure),
    Column("Tokens", "tokens", text.count),
    Column("Damping", "damping", text.figure),
    Column("log2 gain", "log2_gain", text.figure),
)


def render_html(report: dict[str, Any]) -> str:
    """One self-contained page about a compression.

    Args:
        report: one that `check_report` accepts.
    """
    tensors = report["tensors"]
    kinds = summary.Kinds(tensors)
    return _template().render(
        report=report,
        text=text,
        rows=ROWS,
        dotted=_dotted,
        command=_lines(report["command"] or ""),
        mean_error=summary.mean(tensors, "relative_error"),
        mean_hessian=summary.mean(tensors, "hessian_error"),
        ratio=summary.ratio(report),
        original_bits=summary.original_bits(report),
        bytes=figures.byte_bars(report),
        kinds=kinds.labels,
        depth=figures.depth(report, kinds),
        distortion=figures.rate_distortion(tensors, kinds),
        heat=figures.heat(tensors, kinds),
        gains=figures.gains(report["blocks"]),
        columns=[c for c in COLUMNS if text.finite(t[c.key] for t in tensors)],
        tokens=_ends(text.finite(t["tokens"] for t in tensors)),
        worst=summary.worst(tensors, ROWS),
        largest_error=max(text.finite(t["relative_error"] for t in tensors), default=0.0),
        kept=sorted(report["kept"], key=lambda row: -(row["bytes"] or 0)),
        kept_by_reason=summary.grouped(report["kept"], _reason),
    )


def _ends(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _reason(kept: dict[str, Any]) -> str:
    return kept["why"] or "no reason given"


def _dotted(name: str) -> Markup:
    """A name that may be broken after its dots."""
    return Markup(".<wbr>").join(text.plain(name).split("."))


def _lines(command: str) -> Markup:
    """A command that may run over several lines, its options not to be broken at their hyphens."""
    words = re.split(r"(\s+)", text.plain(command, keep="\n\t"))
    return Markup("").join(
        Markup("<span>{}</span>").format(word) if word.startswith("-") else word for word in words
    )


def _shown(value: object) -> object:
    """Every text the template prints passes through here; markup of ours is left alone."""
    return text.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("nwc.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
