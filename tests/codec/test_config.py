import dataclasses

import pytest

from nwc.codec.config import DEFAULT, IDENTITY, PAPER_LAMBDAS, CodecConfig, paper
from nwc.codec.model import WeightCodec
from nwc.errors import ConfigError


@pytest.mark.parametrize("config", [DEFAULT, IDENTITY, *map(paper, PAPER_LAMBDAS)])
def test_round_trip(config):
    assert CodecConfig.from_dict(config.to_dict()) == config


def test_preset_paper_is_the_papers():
    config = paper(1000)
    assert (config.width, config.blocks, config.levels) == (512, 4, 4)
    assert config.importance == (0.29, 0.83, 10.0, 20.0)
    assert config.lam == 1000
    assert not config.channels_share_tables


def test_preset_default_is_small():
    g_s = WeightCodec(DEFAULT).g_s
    values = sum(p.numel() for p in g_s.parameters())
    assert 2 * values < 200_000
    # Each of 16 weights: two products a hidden unit, and what conditions it on the gain.
    operations = 16 * 2 * values
    assert operations < 20_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "magic"}, "'magic' is not one of"),
        ({"kind": "skip"}, "width 0"),
        ({"kind": "residual", "width": 8}, "blocks in 1"),
        ({"kind": "residual", "width": 8, "blocks": 1}, "a lambda"),
        ({"kind": "identity", "importance": [0.0]}, "positive weights"),
        ({"kind": "identity", "importance": [1.0] * 17}, "1 to 16"),
        ({"kind": "identity", "nominal_log2_gain": float("nan")}, "not finite"),
        ({"kind": "identity", "colour": "red"}, "colour"),
        ({"kind": "skip", "width": "wide"}, "cannot be read"),
        ({"width": 8}, "wanted 'kind'"),
        ([1], "got|has list"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        CodecConfig.from_dict(values)


def test_levels_are_offsets_of_the_gain():
    assert DEFAULT.level_offsets == tuple(level / 2 for level in range(16))
    assert paper(30).level_offsets[0] == 0
    # A weight 20 / 0.29 times as large asks for a step sqrt(20 / 0.29) times as fine.
    assert 2 ** paper(30).level_offsets[3] == pytest.approx((20 / 0.29) ** 0.5)


def test_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.width = 3
