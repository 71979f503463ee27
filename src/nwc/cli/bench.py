"""`nwc bench`."""

from __future__ import annotations
from dataclasses import dataclass
from nwc.cli.console import Command


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """b"""
