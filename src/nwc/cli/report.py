"""`nwc report`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nwc.cli.arguments import Compressed
from nwc.cli.console import Command, out
from nwc.errors import ConfigError, FormatError
from nwc.formats.layout import check_version, parse_object
from nwc.reporting.html import render_html
from nwc.reporting.schema import check_report

REPORT_FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Draw the report of a compression as one web page that needs nothing else.

    Example: nwc report OUT
    """

    model: Compressed
    """Compressed folder."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Page to write; default: IN-report.html beside the folder."""
    overwrite: bool = False
    """Replace an existing page."""

    def run(self) -> int:
        """See the class."""
        page = self._page()
        draw_page(self.model, page)
        out.print(f"{page}", markup=False)
        return 0

    def _page(self) -> Path:
        page = self.output or page_of(self.model)
        if page.suffix not in (".html", ".htm"):
            raise ConfigError(f"--output is {page}, wanted a name ending in .html")
        check_page(page, overwrite=self.overwrite)
        return page


def page_of(folder: Path) -> Path:
    """Where the page of a compressed folder lies: beside it, so that the folder stays small."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.parent / f"{folder.name}-report.html"


def check_page(page: Path, *, overwrite: bool) -> None:
    """Raise FormatError if a page may not be written."""
    if page.is_dir():
        raise FormatError(f"{page} is a folder; choose another --output")
    if page.exists() and not overwrite:
        raise FormatError(f"{page} exists; choose another --output or add --overwrite")


def draw_page(folder: Path, page: Path) -> None:
    """Draw the report of a compressed folder.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    _write(page, render_html(read_report(folder / REPORT_FILE)))


def read_report(path: Path) -> dict[str, Any]:
    """The report that nwc compress left in a folder.

    Raises:
        FormatError: the file is missing, or not a report that this nwc reads.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(
            f"{path} does not exist; wanted the output of an nwc compress that writes reports"
        ) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text: {error}") from error
    try:
        report = parse_object(text, str(path))
    except RecursionError as error:
        raise FormatError(f"{path} is not a report: it is nested too deep") from error
    if "version" in report:
        check_version(report["version"], str(path))
    return check_report(report, str(path))


def _write(page: Path, text: str) -> None:
    """Write a file that is complete or absent."""
    page.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{page.name}.partial-", dir=page.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        scratch.chmod(0o644)
        scratch.replace(page)
    finally:
        scratch.unlink(missing_ok=True)
