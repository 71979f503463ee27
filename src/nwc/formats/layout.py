"""Names and versions of everything that a compressed checkpoint holds."""

from __future__ import annotations

import json
from typing import Any

from nwc.errors import FormatError

MAJOR, MINOR = 1, 0
QUANT_METHOD = "nwc"

STREAM_SUFFIX = ".nwc"
"""A compressed tensor `key` is stored as U8 tensor `key.nwc`."""

BANK_KEY = "nwc.tables"
CODEC_KEY = "nwc.codec"
"""The synthesis transform: all its parameters in canonical order, one FP16 vector."""

METADATA_KEY = "nwc"
"""Key of the JSON text in `__metadata__` of the shard that holds bank and codec."""

GUARD_BYTES = b""
"""The first compressed tensor of a file also has an empty U8 tensor under its own name. A loader
that does not know the format finds a tensor of a wrong shape and stops, instead of going on with
random weights where it found no name that it knows."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def is_shared(key: str) -> bool:
    """Whether a stored name belongs to the file as a whole and not to a tensor."""
    return key in (BANK_KEY, CODEC_KEY)


def check_version(version: object, where: str) -> None:
    """Raise FormatError unless this nwc reads files of the version."""
    parts = str(version).split(".")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise FormatError(f"{where} has version {version!r}, wanted one like {MAJOR}.{MINOR}")
    if int(parts[0]) != MAJOR:
        raise FormatError(
            f"{where} has version {version}, this nwc reads {MAJOR}.x: update nwc "
            '(pip install -U "neural-weight-compression")'
        )


def parse_object(text: str, where: str) -> dict[str, Any]:
    """JSON text that must be an object.

    Raises:
        FormatError: it is not.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where} holds {type(value).__name__}, wanted an object")
    return value
