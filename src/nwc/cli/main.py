"""The command: its verbs and how they are parsed."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from nwc.cli.bench import Bench
from nwc.cli.compress import Compress, Decompress
from nwc.cli.console import run
from nwc.cli.evaluate import Eval
from nwc.cli.inspect import Inspect, Verify
from nwc.cli.train import Train

Verb = (
    Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Decompress, tyro.conf.subcommand("decompress")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)

_STYLE = (
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.OmitArgPrefixes,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.HelptextFromCommentsOff,
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `nwc`."""
    verb = tyro.cli(
        Verb,  # type: ignore[arg-type]
        prog="nwc",
        description="Neural Weight Compression: small, verified, fast-loading model weights.",
        args=arguments,
        config=_STYLE,
    )
    sys.exit(run(verb))
