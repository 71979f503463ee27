"""Write the golden streams of a new version: `python tools/make_golden.py v1.1`.

A golden stream decodes to the same symbols for ever, so an existing version is never overwritten.
Each stream `NAME.nwct` lies beside its symbols `NAME.npy` and, if it needs one, its `NAME.bank`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nwc.codec import scales
from nwc.codec.compressed import MeasuredErrors
from nwc.coding import bitstream
from nwc.coding.census import census, choose_tables
from nwc.coding.container import Section
from nwc.coding.rans import LANES
from nwc.coding.tables import FrequencyTable, TableBank, from_probabilities
from nwc.coding.tiling import PROFILES, Classes, Profile, tile_origins, tile_shape
from nwc.coding.trellis import TRELLISES

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


TILES_OF_32K = Profile(4096, 2**15)


class Golden(NamedTuple):
    """One stream with what it must decode to."""

    name: str
    data: bytes
    symbols: np.ndarray
    bank: TableBank | None = None


def scalar_streams() -> Iterator[Golden]:
    """One stream for every branch of version 1.0."""
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


def trellis_streams() -> Iterator[Golden]:
    """One stream for every branch that version 1.1 adds."""
    for states in TRELLISES:
        yield _golden(
            f"trellis{states}", _paths(states, 256, 130, 3.0, states), 256, trellis=states
        )

    outliers = _paths(40, 48, 50, 1.5, 8)
    outliers.reshape(-1)[[3, 700, 2399]] += np.array([4000, -30000, 32000], dtype=np.int16)
    yield _golden("trellis_patches", outliers, 48, trellis=8, scaling=Section.SCALE)

    by_row = np.arange(160).reshape(10, LANES) % 5
    spread = 2.0 ** (0.5 * (by_row + np.arange(40)[:, None, None] % 3))
    profile = Profile(64, 512)
    options = {"row_classes": by_row.astype(np.uint8), "profile": profile}
    columns = (np.arange(40) % 3).astype(np.uint8)
    values = _paths(41, 155, 40, spread, 8, profile)
    yield _golden("trellis_rows", values, 155, trellis=8, classes=columns, **options)
    yield _golden("scalar_rows", _normal(42, 155, 40, spread), 155, classes=columns, **options)

    channels = _paths(43, 160, 60, np.linspace(0.6, 3, LANES), 4)
    yield _golden("trellis_channels", channels, 160, trellis=4, share=False)
    yield _golden("trellis_one_by_one", _paths(44, 1, 1, 2.0, 32), 1, trellis=32)


STREAMS = {"v1": scalar_streams, "v1.1": trellis_streams}


def _paths(
    seed: int,
    rows: int,
    columns: int,
    spread: float | np.ndarray,
    states: int,
    profile: Profile = TILES_OF_32K,
) -> np.ndarray:
    """Random paths: of the integers that the state allows, the one nearest to a normal number."""
    symbols = _normal(seed, rows, columns, spread).astype(np.int64)
    chunks = symbols.shape[1]
    tile = tile_shape(chunks, columns, profile)
    trellis = TRELLISES[states]
    for column, chunk in tile_origins(chunks, columns, *tile):
        part = symbols[column : column + tile[1], chunk : chunk + tile[0]]
        path = [0] * LANES
        for place in np.ndindex(part.shape):
            lane = place[2]
            part[place] += (part[place] ^ path[lane]) & 1
            path[lane] = trellis.step(path[lane], int(part[place]) >> 1)
    return symbols.astype(np.int16)


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
    profile: Profile = TILES_OF_32K,
    scaling: Section = Section.SCALES_LOG,
    transposed: bool = False,
    prior: FrequencyTable | None = None,
    trellis: int = 0,
    row_classes: np.ndarray | None = None,
) -> Golden:
    columns = len(symbols)
    classes = np.zeros(columns, dtype=np.uint8) if classes is None else classes
    both = Classes.by_column(classes, symbols.shape[1])
    if row_classes is not None:
        both = Classes(classes, row_classes)
    count = int(both.columns.max()) + int(both.rows.max()) + 1
    priors = None if prior is None else [[prior]] * count
    bank = None if prior is None else TableBank()
    extra = {
        Section.GAIN: struct.pack("<f", 2.25),
        scaling: _scales(scaling, columns),
        Section.ERRORS: MeasuredErrors(0.125, 0.0625, 0.01).to_bytes(),
    }
    if row_classes is not None:
        extra[Section.ROW_SCALES] = scales.pack_log(torch.linspace(0.5, 3.0, rows))[0]
    machine = TRELLISES.get(trellis)
    cells = census(symbols, both, count, share_lanes=share, trellis=machine)
    data = bitstream.encode(
        symbols,
        both,
        choose_tables(cells, count, priors, paired=machine is not None),
        rows=rows,
        trellis=machine,
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


def write(folder: Path, streams: Iterable[Golden]) -> None:
    """Make the folder and write the streams.

    Raises:
        FileExistsError: the folder is there already, even if it is empty.
    """
    folder.mkdir(parents=True)
    for golden in streams:
        (folder / f"{golden.name}.nwct").write_bytes(golden.data)
        np.save(folder / f"{golden.name}.npy", golden.symbols)
        if golden.bank is not None:
            (folder / f"{golden.name}.bank").write_bytes(golden.bank.to_bytes())


def main(arguments: list[str]) -> None:
    """Write one version.

    Raises:
        SystemExit: the version exists, or none is named.
    """
    if len(arguments) != 1 or arguments[0] not in STREAMS:
        raise SystemExit(f"usage: python tools/make_golden.py {'|'.join(STREAMS)}")
    folder = GOLDEN / arguments[0]
    try:
        write(folder, STREAMS[arguments[0]]())
    except FileExistsError as error:
        raise SystemExit(f"{folder} exists; golden files never change, name a new one") from error
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
