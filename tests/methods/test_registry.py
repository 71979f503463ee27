import pytest

from nwc.codec.config import DEFAULT
from nwc.codec.model import WeightCodec
from nwc.coding.tiling import PROFILES
from nwc.errors import ConfigError
from nwc.methods.registry import METHODS

PROFILE = PROFILES["balanced"]


def test_names_are_the_methods_own():
    codecs = {"nwc": WeightCodec(DEFAULT), "ecsq": None}
    assert set(METHODS) == set(codecs)
    for name, make in METHODS.items():
        assert make(codecs[name], PROFILE, "cpu").name == name


def test_codecs_where_they_belong():
    with pytest.raises(ConfigError, match="wants a codec"):
        METHODS["nwc"](None, PROFILE, "cpu")
    with pytest.raises(ConfigError, match="has no codec"):
        METHODS["ecsq"](WeightCodec(DEFAULT), PROFILE, "cpu")
