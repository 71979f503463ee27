"""Writes docs/cli.md from the command's own help; `--check` only says whether it is current."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
VERBS = ("compress", "decompress", "eval", "inspect", "verify", "train", "bench")
HEAD = """# The command

Made by `make docs` from the command's own help. Results go to standard output, all else to
standard error. Exit code 0: done; 1: a check failed or data is damaged; 2: wrong use; 130: Ctrl-C.
"""


def page() -> str:
    """The reference as Markdown."""
    parts = [HEAD]
    for verb in VERBS:
        found = subprocess.run(
            [sys.executable, "-m", "nwc", verb, "--help"],
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=True,
        )
        text = "\n".join(line.rstrip() for line in found.stdout.strip().splitlines())
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
