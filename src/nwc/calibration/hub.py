"""Data sets by name, for text and images alike."""

from __future__ import annotations

from typing import Any

from nwc.errors import CalibrationError


def open_dataset(source: str, instead: str) -> tuple[str, Any]:
    """A data set's name and its rows, streamed.

    Args:
        source: NAME, NAME:CONFIG or NAME:CONFIG:SPLIT, as `datasets.load_dataset` takes them; the
            split is train unless told otherwise.
        instead: what the source could have been, for people: "a file".

    Raises:
        CalibrationError: package `datasets` is missing, or there is no such data set.
    """
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(
            f"{source} is not {instead}, and the package that loads data sets is missing: check "
            'the path, or pip install "neural-weight-compression[datasets]"'
        ) from error
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    except Exception as error:  # the loader raises errors of many libraries
        raise CalibrationError(
            f"{source} is not {instead}, and not a data set that loads: {error}"
        ) from error
    return name, rows
