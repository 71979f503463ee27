"""Writes docs/cli.md from the command's own help; `--check` only says whether it is current."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

from nwc.cli.main import main as nwc

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
VERBS = (
    "compress", "decompress", "run", "eval", "inspect", "verify", "report", "train", "bench",
    "bench quality",
)  # fmt: skip
HEAD = """# The command

Made by `make docs` from the command's own help. Results go to standard output, all else to
standard error. Exit code 0: done; 1: a check failed or data is damaged; 2: wrong use; 130: Ctrl-C.
"""


def page() -> str:
    """The reference as Markdown."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    parts = [HEAD]
    for verb in VERBS:
        shown = io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            nwc([*verb.split(), "--help"])
        text = "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())
        parts.append(f"## nwc {verb}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or compare it."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not what the command says of itself; run make docs")
    return 1


if __name__ == "__main__":
    sys.exit(main())
