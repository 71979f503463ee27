"""Ordinary weights, compressed while they are loaded.

Loading never loads the compressor, and rooms below it do not know it: whoever knows both, the
package itself, leaves a function here that imports the compressor when it is called.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nwc.errors import ConfigError

_compressor: list[Callable[..., object]] = []


def use_compressor(compress: Callable[..., object]) -> None:
    """Name the function that compresses: `compress(model, output, **options)`."""
    _compressor[:] = [compress]


class TemporaryCopy:
    """A compressed folder that is removed when nobody holds this any more.

    Args:
        place: the folder around it.
    """

    def __init__(self, place: Path) -> None:
        self.folder = place / "model"
        # An open file can be removed everywhere but on Windows, where it is left behind.
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)


def compressed_copy(folder: Path, options: dict[str, Any]) -> TemporaryCopy:
    """Compress a model's folder, without calibration text unless the options name one.

    Args:
        folder: of an ordinary checkpoint.
        options: of `nwc.compress`.

    Raises:
        NWCError: the folder cannot be compressed in this way.
    """
    if not _compressor:
        raise ConfigError("nothing compresses here; import nwc, or give a folder it has made")
    made = TemporaryCopy(Path(tempfile.mkdtemp(prefix="nwc-")))
    if "calibration" not in options:
        options = {"data_free": True} | options
    _compressor[0](folder, made.folder, **options)
    return made
