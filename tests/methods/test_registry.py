from typing import get_args

import pytest

from nwc.codec.config import DEFAULT
from nwc.codec.model import WeightCodec
from nwc.coding.tiling import PROFILES
from nwc.errors import ConfigError
from nwc.methods.neural import Decisions
from nwc.methods.registry import CODED, DENSE, MethodName, make_method


def make(name, bits=4.5, codec=None):
    if name == "gguf_legacy":
        pytest.importorskip("gguf", reason="package gguf is not installed")
    profile = PROFILES["balanced"]
    return make_method(name, bits=bits, codec=codec, decisions=Decisions(), profile=profile)


@pytest.mark.parametrize("name", get_args(MethodName))
def test_every_name_has_its_method(name):
    codec = WeightCodec(DEFAULT) if name == "nwc" else None
    assert make(name, codec=codec).name == name


def test_every_method_has_its_name():
    assert {"nwc", *CODED, *DENSE} == set(get_args(MethodName))


def test_only_nwc_takes_a_codec():
    with pytest.raises(ConfigError, match="wants a codec"):
        make("nwc")
    with pytest.raises(ConfigError, match="has no codec"):
        make("ecsq", codec=WeightCodec(DEFAULT))


def test_unknown_name():
    with pytest.raises(ConfigError, match="'zip' is not one of nwc, ecsq"):
        make("zip")


@pytest.mark.parametrize("name", DENSE)
def test_settings_are_what_their_bits_say(name):
    for bits, setting in DENSE[name].settings.items():
        method = make(name, bits)
        assert (method.nominal_bits, method.setting) == (bits, setting)
        assert setting.label
