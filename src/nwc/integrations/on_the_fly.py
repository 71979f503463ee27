"""Ordinary weights, compressed while they are loaded.

Loading never loads the compressor, and rooms below it do not know it: whoever knows both, the
package itself, leaves a function here that imports the compressor when it is called.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nwc.errors import ConfigError

_compressor: list[Callable[..., object]] = []


def use_compressor(compress: Callable[..., object]) -> None:
    """Name the function that compresses: `compress(model, output, **options)`."""
    _compressor[:] = [compress]


def compressed_copy(
    folder: Path, options: dict[str, Any]
) -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """Compress a model's folder, without calibration text unless the options name one.

    Args:
        folder: of an ordinary checkpoint.
        options: of `nwc.compress`.

    Returns:
        The compressed folder, and what removes it once nobody holds that any more.

    Raises:
        NWCError: the folder cannot be compressed in this way.
    """
    if not _compressor:
        raise ConfigError("nothing compresses here; import nwc, or give a folder it has made")
    # An open file can be removed on every system but Windows, where it stays until next time.
    place = tempfile.TemporaryDirectory(prefix="nwc-", ignore_cleanup_errors=True)
    output = Path(place.name) / "model"
    if "calibration" not in options:
        options = {"data_free": True} | options
    _compressor[0](folder, output, **options)
    return output, place
