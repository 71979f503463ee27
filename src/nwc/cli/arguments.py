"""Kinds of argument that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro

from nwc.errors import ConfigError

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
ReferenceModel = Annotated[str | None, tyro.conf.arg(metavar="MODEL")]
Compressed = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
Folder = Annotated[Path, tyro.conf.arg(metavar="OUT")]
Images = Annotated[str | None, tyro.conf.arg(metavar="IMAGES")]
ClassNames = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Prompts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PROMPT"), tyro.conf.UseAppendAction]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
TaskNames = Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")]
TaskFiles = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
Calibration = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
CodecFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
CodecOutput = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Tokens = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Bits = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
Patterns = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN"), tyro.conf.UseAppendAction]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def usable_device(name: str) -> str:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        ConfigError: this machine or this torch has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name} cannot be used ({str(error).splitlines()[0]}); use cpu"
        ) from error
    return name
