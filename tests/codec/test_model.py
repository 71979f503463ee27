import pytest
import torch

from nwc.codec.config import DEFAULT, IDENTITY, MAX_LOG2_GAIN, CodecConfig, paper
from nwc.codec.model import WeightCodec

SKIP = CodecConfig(kind="skip", width=8)
RESIDUAL = CodecConfig(kind="residual", width=16, blocks=2, lam=100.0, nominal_log2_gain=2.0)


def restored(codec, x, level, gain):
    with torch.no_grad():
        return codec.synthesis(codec.analysis(x, level, gain).round(), level, gain)


@pytest.mark.parametrize("config", [IDENTITY, DEFAULT, SKIP])
@pytest.mark.parametrize("gain", [3.0, 4.0])
def test_gain_sets_the_error(config, gain):
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    error = restored(WeightCodec(config), x, torch.zeros(4000).long(), gain) - x
    assert float(error.square().mean()) == pytest.approx(4**-gain / 12, rel=0.02)


@pytest.mark.parametrize("config", [IDENTITY, DEFAULT, SKIP, RESIDUAL])
def test_one_gain_for_all_or_one_each(config):
    torch.manual_seed(0)
    codec, x = WeightCodec(config), torch.randn(5, 16)
    level = torch.arange(5) % config.levels
    each = torch.full((5,), 1.5)
    torch.testing.assert_close(restored(codec, x, level, 1.5), restored(codec, x, level, each))


def test_higher_levels_are_finer():
    codec, x = WeightCodec(DEFAULT), torch.randn(1000, 16)
    errors = [
        float((restored(codec, x, torch.full((1000,), level), 1.0) - x).square().mean())
        for level in (0, 2, 4)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_latents_fit_their_table():
    codec = WeightCodec(DEFAULT)
    level = torch.arange(16)
    assert codec.level_log2_gain(level, 2.0).max() == MAX_LOG2_GAIN
    assert codec.level_log2_gain(level, 6.0).tolist() == [6.0] * 16  # asked for outright
    assert codec.usable_levels(4.9) == 16
    paper_codec = WeightCodec(paper(10_000))
    assert paper_codec.usable_levels(paper_codec.config.nominal_log2_gain) == 2
    assert paper_codec.usable_levels(-1.0) == 4
    assert paper_codec.usable_levels(100.0) == 1


@pytest.mark.parametrize("config", [DEFAULT, SKIP, RESIDUAL])
def test_prior_is_a_distribution(config):
    torch.manual_seed(0)
    codec = WeightCodec(config)
    pmf = codec.prior(0, 1.0, torch.arange(-2000, 2001))
    assert pmf.shape[0] == (1 if config.channels_share_tables else 16)
    torch.testing.assert_close(pmf.sum(dim=1), torch.ones(len(pmf)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("config", [DEFAULT, SKIP, RESIDUAL])
def test_training_reaches_every_parameter(config):
    torch.manual_seed(0)
    codec, n = WeightCodec(config), 64
    for name, parameter in codec.named_parameters():
        if name.endswith("reduce.weight"):  # corrections start at zero and would hide the rest
            torch.nn.init.normal_(parameter, std=0.1)
    output = codec.training_pass(
        torch.randn(n, 16), torch.arange(n) % config.levels, torch.rand(n), torch.rand(n, 16) - 0.5
    )
    assert output.bits.shape == output.squared_error.shape == (n,)
    (output.bits + output.squared_error).sum().backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
