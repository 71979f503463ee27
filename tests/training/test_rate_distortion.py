import torch

from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.formats.shipped import shipped_codec
from nwc.training.rate_distortion import rate_distortion

CHUNKS = torch.randn(8000, 16, generator=torch.Generator().manual_seed(0))


def test_an_untrained_correction_is_the_scalar_quantiser():
    rows = rate_distortion(WeightCodec(CodecConfig(kind="compander", width=4)), CHUNKS)
    for row in rows:
        assert abs(row["bits_per_weight"] - row["scalar_bits_at_equal_mse"]) < 0.003


def test_bits_rise_and_errors_fall_with_the_gain():
    rows = rate_distortion(WeightCodec(CodecConfig(kind="skip", width=4)), CHUNKS)
    bits, errors = [r["bits_per_weight"] for r in rows], [r["mse"] for r in rows]
    assert bits == sorted(bits)
    assert errors == sorted(errors, reverse=True)


def test_the_shipped_default_beats_scalar_steps_on_data_it_never_saw():
    for row in rate_distortion(shipped_codec("default", 4.0)[0], CHUNKS):
        saved = row["scalar_bits_at_equal_mse"] - row["bits_per_weight"]
        assert saved > (0.03 if row["bits_per_weight"] < 2 else -0.003)


def test_paper_codecs_have_a_row_for_every_level():
    torch.manual_seed(0)
    config = CodecConfig(kind="residual", width=8, blocks=1, lam=100.0, nominal_log2_gain=1.0)
    rows = rate_distortion(WeightCodec(config), CHUNKS)
    assert [row["level"] for row in rows] == [0, 1, 2, 3]
