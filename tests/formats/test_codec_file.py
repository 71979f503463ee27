import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.errors import ConfigError, FormatError
from nwc.formats.codec_file import fingerprint, load_codec, load_config, save_codec
from nwc.formats.shards import Shard
from nwc.formats.shipped import shipped_codec, shipped_codecs

CONFIG = CodecConfig(kind="skip", width=4)


@pytest.fixture
def codec():
    torch.manual_seed(0)
    codec = WeightCodec(CONFIG)
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter)
    return codec


@pytest.fixture
def path(codec, tmp_path):
    save_codec(codec, tmp_path / "mine.safetensors", {"steps": 3})
    return tmp_path / "mine.safetensors"


def test_round_trip(codec, path):
    found = load_codec(path)
    assert found.config == load_config(path) == CONFIG
    for key, value in codec.state_dict().items():
        assert torch.equal(found.state_dict()[key], value.half().float())
    assert json.loads(path.with_suffix(".json").read_text()) == {"steps": 3}
    assert fingerprint(found) == fingerprint(codec)
    assert not any(p.requires_grad for p in found.parameters())


def test_fingerprint_is_of_all_that_a_reader_needs(codec, path):
    other = load_codec(path)
    with torch.no_grad():
        other.g_s.slope[0] += 1
    assert fingerprint(other) != fingerprint(codec)
    other = load_codec(path)
    with torch.no_grad():
        other.g_a.slope[0] += 1  # the analysis transform is nobody's concern
    assert fingerprint(other) == fingerprint(codec)


def rewrite(path, change_tensors=lambda t: None, **metadata):
    tensors, old = load_file(path), Shard(path).metadata
    change_tensors(tensors)
    about = json.loads(old["nwc_codec"]) | metadata
    save_file(tensors, path, {"nwc_codec": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: save_file({"a": torch.ones(1)}, p), "not a codec; train one"),
        (lambda p: p.write_bytes(p.read_bytes()[:99]), "truncated"),
        (lambda p: rewrite(p, version="2.0"), "version 2.0, this nwc reads 1.x: update"),
        (lambda p: rewrite(p, version=7), "version 7, wanted one like"),
        (lambda p: rewrite(p, config={"kind": "wishful"}), "'wishful' is not one of"),
        (lambda p: rewrite(p, config={"kind": "skip", "width": 5}), r"is \[4\], wanted \[5\]"),
        (lambda p: rewrite(p, lambda t: t.pop("g_a.slope")), "no such tensor, wanted"),
        (lambda p: rewrite(p, lambda t: t["g_s.shift"].fill_(float("nan"))), "not finite"),
        (lambda p: save_file({}, p, {"nwc_codec": "not json"}), "is not JSON"),
        (lambda p: save_file({}, p, {"nwc_codec": "[1]"}), "wanted an object"),
    ],
)
def test_files_that_are_no_codec(path, change, message):
    change(path)
    with pytest.raises(FormatError, match=message):
        load_codec(path)


def test_shipped_codecs_load_and_have_cards():
    shipped = shipped_codecs()
    assert set(shipped) == {
        "default",
        "light",
        *(f"paper-{v}" for v in (30, 50, 100, 300, 1000, 10000)),
    }
    for name, path in shipped.items():
        card = json.loads(path.with_suffix(".json").read_text())
        assert CodecConfig.from_dict(card["codec"]) == load_config(path), name
        assert card["rate_distortion"]
        assert card["weights"]


def test_the_nearest_paper_codec_serves_a_rate():
    names = [shipped_codec("paper", bits)[1] for bits in (2.0, 3.0, 3.7, 4.6, 7.0)]
    assert names == ["paper-30", "paper-100", "paper-300", "paper-1000", "paper-10000"]
    assert shipped_codec("default", 3.0)[1] == "default"
    with pytest.raises(ConfigError, match="not one of"):
        shipped_codec("unheard-of", 3.0)
