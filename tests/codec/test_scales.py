import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.codec.scales import pack_f16, pack_log, pack_single, unpack
from nwc.coding.container import Container, Head, Section
from nwc.errors import BitstreamError

KINDS = {Section.SCALES_LOG: pack_log, Section.SCALES_F16: pack_f16}


def read(kind, data, n):
    head = Head(16, n, 1, 1, 1, False, 0)
    payload = np.zeros(0, dtype=np.uint16)
    return unpack(Container(memoryview(b""), head, {kind: memoryview(data)}, payload))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_readers_get_what_the_encoder_used(kind, magnitude):
    scales = torch.rand(100, generator=torch.Generator().manual_seed(0)) + 0.05
    scales[::7] = 0
    data, used = KINDS[kind](scales * magnitude)
    assert torch.equal(read(kind, data, 100), used)
    assert not used[::7].any()
    live = scales > 0
    octaves = torch.log2(used[live] / magnitude / scales[live]).abs().max()
    assert octaves <= (0.126 if kind is Section.SCALES_LOG else 0.002)


def test_logarithmic_scales_are_small():
    scales = torch.exp(0.2 * torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    assert 8 * len(pack_log(scales)[0]) / 4096 < 3.5


def test_dead_matrices():
    for kind, pack in KINDS.items():
        assert not read(kind, pack(torch.zeros(5))[0], 5).any()


def test_fp16_scales_below_its_range_do_not_die():
    scales = torch.tensor([1.0, 1e-12])
    assert (pack_f16(scales)[1] > 0).all()


def test_single():
    data, used = pack_single(0.1, 3)
    assert read(Section.SCALE, data, 3).tolist() == used.tolist() == [np.float32(0.1)] * 3


@settings(deadline=None)
@given(st.sampled_from([*KINDS, Section.SCALE]), st.binary(max_size=60), st.integers(1, 20))
def test_any_bytes_are_scales_or_an_error(kind, data, n):
    try:
        found = read(kind, data, n)
    except BitstreamError:
        return
    assert torch.isfinite(found).all()
    assert found.shape == (n,)


def test_finer_scales():
    scales = torch.exp(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    data, used = pack_log(scales, 64)
    assert torch.equal(read(Section.SCALES_LOG, data, 50), used)
    assert torch.log2(used / scales).abs().max() <= 0.501 / 64
