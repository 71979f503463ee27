"""Streams of every version decode to the same symbols for ever."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nwc.codec.compressed import CompressedTensor
from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding import tiling
from nwc.coding.bitstream import BANK_BIT, Bitstream, encode
from nwc.coding.container import Section
from nwc.coding.rans import LANES
from nwc.coding.tables import TableBank
from nwc.coding.tiling import Profile
from nwc.kernels import rans_numba

STREAMS = sorted(Path(__file__).parent.glob("v*/*.nwct"))
OWN_SECTIONS = {
    Section.TABLES,
    Section.TABLE_MAP,
    Section.CLASSES,
    Section.ROW_CLASSES,
    Section.INDEX,
    Section.PATCHES,
}

every_stream = pytest.mark.parametrize(
    "path", STREAMS, ids=[f"{path.parent.name}-{path.stem}" for path in STREAMS]
)


def read_bank(path):
    bank = path.with_suffix(".bank")
    return TableBank.from_bytes(bank.read_bytes()) if bank.exists() else None


def read_symbols(path):
    return np.load(path.with_suffix(".npy"))


def test_no_stream_was_lost():
    names = {path.stem for path in STREAMS if path.parent.name == "v1"}
    assert names == {
        "bank",
        "channels",
        "constant",
        "one_by_one",
        "one_row",
        "patches",
        "seventeen_rows",
        "shared",
        "tiles",
        "transposed",
    }


@every_stream
@pytest.mark.parametrize("decoder", [tiling.decode_tile, rans_numba.decode_tile])
def test_symbols_are_exact(path, decoder):
    symbols = Bitstream(path.read_bytes(), read_bank(path)).symbols(decoder)
    expected = read_symbols(path)
    assert (symbols.dtype, symbols.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(symbols, expected)


@every_stream
@pytest.mark.parametrize("tile_encoder", [tiling.encode_tile, rans_numba.encode_tile])
def test_the_encoder_gives_the_same_bytes(path, tile_encoder):
    data, bank = path.read_bytes(), read_bank(path)
    stream = Bitstream(data, bank)
    head, sections = stream.head, stream.container.sections
    places = np.frombuffer(sections[Section.TABLE_MAP], dtype="<u2").reshape(head.classes, -1)
    choice = stream.tables.choice.reshape(head.classes, -1)[:, : places.shape[1]]
    tables = [[stream.tables.tables[i] for i in row] for row in choice]
    shared = {
        table.key
        for row, at in zip(tables, places, strict=True)
        for table, place in zip(row, at, strict=True)
        if place & BANK_BIT
    }
    rows = head.tile_chunks * LANES
    again = encode(
        read_symbols(path),
        stream.classes,
        tables,
        rows=head.rows,
        trellis=stream.tables.trellis,
        profile=Profile(rows, rows * head.tile_columns),
        bank=bank,
        bank_tables=frozenset(shared),
        extra={k: bytes(v) for k, v in sections.items() if k not in OWN_SECTIONS},
        transposed=head.transposed,
        tile_encoder=tile_encoder,
    )
    assert again == data


@every_stream
def test_weights_are_symbols_times_step_and_scale(path):
    codec = WeightCodec(CodecConfig(kind="identity", importance=(1.0,) * 16))
    tensor = CompressedTensor(path.read_bytes(), codec, read_bank(path))
    head = tensor.stream.head
    symbols = torch.from_numpy(read_symbols(path)).flatten(1)[:, : head.rows]
    if head.trellis:
        symbols = symbols / 2
    columns = symbols * 2.0**-tensor.log2_gain * tensor.scales[:, None]
    if Section.ROW_SCALES in tensor.stream.container.sections:
        columns = columns * tensor.row_scales
    W = columns if head.transposed else columns.T
    assert tensor.weight().shape == W.shape == tensor.shape
    torch.testing.assert_close(tensor.weight(), W, rtol=1e-6, atol=0)
    assert tensor.log2_gain == 2.25
    assert tensor.errors == pytest.approx((0.125, 0.0625, 0.01))


def test_the_streams_reach_every_branch_of_the_format():
    streams = {p.stem: Bitstream(p.read_bytes(), read_bank(p)) for p in STREAMS}
    kinds = {Section(kind) for s in streams.values() for kind in s.container.sections}
    assert kinds == set(Section)
    assert max(len(s.tiles) for s in streams.values()) >= 20
    assert max(len(s.tables.tables) for s in streams.values()) == 64
    assert {s.head.transposed for s in streams.values()} == {False, True}
    assert sum(s.head.rows * s.head.columns >= 2**15 for s in streams.values()) >= 2
    places = np.frombuffer(streams["bank"].container.section(Section.TABLE_MAP), "<u2")
    assert sorted((places & BANK_BIT).tolist()) == [0, BANK_BIT]  # own and shared in one stream
    assert streams["constant"].head.words == 0
