"""The command: its verbs and how they are parsed."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

import nwc
from nwc.cli.bench import Bench
from nwc.cli.compress import Compress
from nwc.cli.console import Command, run
from nwc.cli.decompress import Decompress
from nwc.cli.evaluate import Eval
from nwc.cli.generate import Run
from nwc.cli.inspect import Inspect, Verify
from nwc.cli.quality import Quality
from nwc.cli.report import Report
from nwc.cli.train import Train

Verb = (
    Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Decompress, tyro.conf.subcommand("decompress")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Report, tyro.conf.subcommand("report")]
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
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        sys.stdout.write(f"nwc {nwc.__version__}\n")
        return
    try:
        if given[:2] == ["bench", "quality"]:  # takes a model, which the suites of speed do not
            verb: Command = tyro.cli(
                Quality, prog="nwc bench quality", args=given[2:], config=_STYLE
            )
        else:
            verb = tyro.cli(
                Verb,
                prog="nwc",
                description="Neural Weight Compression: small, verified, fast-loading model "
                "weights.",
                args=given,
                config=_STYLE,
            )
    except BrokenPipeError:  # of `nwc compress --help | head`
        sys.stderr.close()
        sys.exit(0)
    sys.exit(run(verb))
