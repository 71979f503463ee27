"""Write a new version of the golden streams: `python tools/make_golden.py v2`.

A golden stream decodes to the same symbols for ever, so an existing version is never overwritten.
Each stream `NAME.nwct` lies beside its symbols `NAME.npy` and, if it needs one, its `NAME.bank`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nwc.codec import scales
from nwc.codec.compressed import MeasuredErrors
from nwc.coding import bitstream
from nwc.coding.container import Section
from nwc.coding.rans import LANES
from nwc.coding.tables import FrequencyTable, TableBank, choose_tables, from_probabilities
from nwc.coding.tiling import PROFILES, Profile

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


class Golden(NamedTuple):
    """One stream with what it must decode to."""

    name: str
    data: bytes
    symbols: np.ndarray
    bank: TableBank | None = None


def streams() -> Iterator[Golden]:
    """One stream for every branch of the format."""
    yield _golden("shared", _normal(1, 256, 130, 3.0), 256)

    classes = (np.arange(176) * 7 % 4).astype(np.uint8)
    spread = 2.0 ** classes[:, None, None] * np.linspace(0.6, 1.5, LANES)
    yield _golden(
        "channels",
        _normal(2, 192, 176, spread),
        192,
        classes=classes,
        share=False,
        profile=PROFILES["archive"],
        scaling=Section.SCALES_F16,
    )

    outliers = _normal(3, 64, 40, 2.0)
    outliers.reshape(-1)[[5, 1300, 2559]] = [3000, -32767, 32767]
    yield _golden("patches", outliers, 64, scaling=Section.SCALE)

    # Class 0 is wide and counts its own table, class 1 fits the prior that the bank keeps.
    classes = np.repeat(np.array([0, 1], dtype=np.uint8), 32)
    values = _normal(4, 48, 64, np.where(classes, 1.0, 9.0)[:, None, None])
    yield _golden("bank", values, 48, classes=classes, prior=_prior(1.0))

    yield _golden("transposed", _normal(5, 33, 20, 2.0), 33, transposed=True)
    yield _golden("one_by_one", _normal(6, 1, 1, 4.0), 1, scaling=Section.SCALE)
    yield _golden("seventeen_rows", _normal(7, 17, 23, 1.0), 17, profile=PROFILES["latency"])
    yield _golden("one_row", _normal(8, 1, 50, 1.0), 1)
    yield _golden("constant", np.full((16, 2, LANES), -3, dtype=np.int16), 32)

    scattered = _normal(9, 150, 45, 2.0)
    scattered.reshape(-1)[[0, 47, 48, 3333, 7199]] = [300, -300, 301, -301, 302]
    yield _golden("tiles", scattered, 150, profile=Profile(48, 512))


def _normal(seed: int, rows: int, columns: int, spread: float | np.ndarray) -> np.ndarray:
    """Rounded normal symbols; the padding is zero, as the compressor leaves it."""
    chunks = -(-rows // LANES)
    values = np.random.default_rng(seed).normal(size=(columns, chunks, LANES)) * spread
    symbols = np.rint(values).astype(np.int16)
    symbols.reshape(columns, -1)[:, rows:] = 0
    return symbols


def _prior(spread: float) -> FrequencyTable:
    grid = np.arange(-40, 41)
    weights = np.exp(-0.5 * (grid / spread) ** 2)
    return from_probabilities(-40, weights / weights.sum())


def _golden(
    name: str,
    symbols: np.ndarray,
    rows: int,
    *,
    classes: np.ndarray | None = None,
    share: bool = True,
    profile: Profile = PROFILES["balanced"],
    scaling: Section = Section.SCALES_LOG,
    transposed: bool = False,
    prior: FrequencyTable | None = None,
) -> Golden:
    columns = len(symbols)
    classes = np.zeros(columns, dtype=np.uint8) if classes is None else classes
    count = int(classes.max()) + 1
    priors = None if prior is None else [[prior]] * count
    bank = None if prior is None else TableBank()
    extra = {
        Section.GAIN: struct.pack("<f", 2.25),
        scaling: _scales(scaling, columns),
        Section.ERRORS: MeasuredErrors(0.125, 0.0625, 0.01).to_bytes(),
    }
    data = bitstream.encode(
        symbols,
        classes,
        choose_tables(symbols, classes, count, share, priors),
        rows=rows,
        profile=profile,
        bank=bank,
        bank_tables=frozenset() if prior is None else frozenset([prior.key]),
        extra=extra,
        transposed=transposed,
    )
    return Golden(name, data, symbols, bank)


def _scales(scaling: Section, columns: int) -> bytes:
    each = torch.linspace(0.01, 0.04, columns)
    each[1::7] = 0  # some columns are dead
    if scaling == Section.SCALES_LOG:
        return scales.pack_log(each)[0]
    if scaling == Section.SCALES_F16:
        return scales.pack_f16(each)[0]
    return scales.pack_single(0.02, columns)[0]


def write(folder: Path) -> None:
    """Make the folder and write all streams.

    Raises:
        FileExistsError: the folder is there already, even if it is empty.
    """
    folder.mkdir(parents=True)
    for golden in streams():
        (folder / f"{golden.name}.nwct").write_bytes(golden.data)
        np.save(folder / f"{golden.name}.npy", golden.symbols)
        if golden.bank is not None:
            (folder / f"{golden.name}.bank").write_bytes(golden.bank.to_bytes())


def main(arguments: list[str]) -> None:
    """Write one version.

    Raises:
        SystemExit: the version exists, or none is named.
    """
    if len(arguments) != 1 or not arguments[0].removeprefix("v").isdecimal():
        raise SystemExit("usage: python tools/make_golden.py v2")
    folder = GOLDEN / arguments[0]
    try:
        write(folder)
    except FileExistsError as error:
        raise SystemExit(f"{folder} exists; golden files never change, name a new one") from error
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
