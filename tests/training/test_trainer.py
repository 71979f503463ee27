import io
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nwc.codec.config import CodecConfig
from nwc.errors import ConfigError, FormatError
from nwc.formats.codec_file import save_codec
from nwc.training.dataset import ChunkSet
from nwc.training.trainer import Trainer, TrainingConfig

SHAPES = {
    "compander": CodecConfig(kind="compander", width=4),
    "skip": CodecConfig(kind="skip", width=4),
    "residual": CodecConfig(kind="residual", width=8, blocks=1, lam=100.0),
}
every_kind = pytest.mark.parametrize("kind", SHAPES)


def options(**changes):
    settings = {"steps": 12, "batch_chunks": 64, "checkpoint_every": 5, "log_every": 3}
    return TrainingConfig(**settings | {"bf16": False} | changes)


@pytest.fixture(scope="module")
def data():
    chunks = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    return ChunkSet(chunks[:1024], chunks[1024:])


def trained(kind, data, folder, **changes):
    """The bytes of a codec trained to its end."""
    run = Trainer(SHAPES[kind], options(**changes), data, folder / "checkpoint")
    log = io.StringIO()
    codec = run.run(log, lambda line: None)
    save_codec(codec, folder / "codec.safetensors", {})
    return (folder / "codec.safetensors").read_bytes(), log.getvalue()


@every_kind
def test_the_seed_decides_the_file(kind, data, tmp_path):
    first = trained(kind, data, tmp_path)
    assert trained(kind, data, tmp_path) == first
    assert trained(kind, data, tmp_path, seed=1)[0] != first[0]
    # What others do with the global generator must not matter.
    torch.rand(1)
    assert trained(kind, data, tmp_path) == first


@every_kind
@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_ends_in_the_same_bytes(kind, data, tmp_path, bf16):
    whole, _ = trained(kind, data, tmp_path, bf16=bf16)
    stopped = Trainer(SHAPES[kind], options(bf16=bf16), data, tmp_path / "stopped")

    def stop(line):
        if line.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(io.StringIO(), stop)
    resumed = Trainer(SHAPES[kind], options(bf16=bf16), data, tmp_path / "stopped")
    resumed.resume()
    assert resumed.step == 5
    save_codec(resumed.run(io.StringIO(), lambda line: None), tmp_path / "b.safetensors", {})
    assert (tmp_path / "b.safetensors").read_bytes() == whole


def test_the_log_has_a_line_for_every_so_many_steps(data, tmp_path):
    lines = [json.loads(x) for x in trained("compander", data, tmp_path)[1].splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert set(lines[0]) == {"step", "loss", "bits_per_weight", "mse"}


def test_training_lowers_the_loss(data, tmp_path):
    log = trained("residual", data, tmp_path, steps=200, learning_rate=5e-3)[1].splitlines()
    losses = [json.loads(line)["loss"] for line in log]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_what_cannot_be_resumed(data, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(FormatError, match="nothing to resume"):
        Trainer(SHAPES["skip"], options(), data, path).resume()
    path.write_bytes(b"no checkpoint")
    with pytest.raises(FormatError, match="not a training checkpoint"):
        Trainer(SHAPES["skip"], options(), data, path).resume()
    Trainer(SHAPES["skip"], options(), data, path).run(io.StringIO(), lambda line: None)
    with pytest.raises(FormatError, match="same options"):
        Trainer(SHAPES["skip"], options(seed=3), data, path).resume()
    with pytest.raises(FormatError, match="same options"):
        Trainer(SHAPES["compander"], options(), data, path).resume()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    broken = ChunkSet(torch.full((1024, 16), float("nan")), torch.randn(1024, 16))
    with pytest.raises(ConfigError, match=r"loss is nan at step 3.*--learning-rate"):
        trained("compander", broken, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"synthetic_fraction": 1.5}, {"learning_rate": 0.0}]
)
def test_options_that_cannot_be(changes):
    with pytest.raises(ConfigError, match="wanted"):
        options(**changes)


def test_nothing_to_train(data, tmp_path):
    with pytest.raises(ConfigError, match="nothing to train"):
        Trainer(CodecConfig(kind="identity"), options(), data, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, metadata: metadata.pop("step"),
        lambda tensors, metadata: metadata.update(step="many"),
        lambda tensors, metadata: tensors.pop("generator"),
        lambda tensors, metadata: tensors.update(generator=torch.zeros(3)),
        lambda tensors, metadata: tensors.pop(next(k for k in tensors if k.startswith("model."))),
        lambda tensors, metadata: tensors.update(
            {k: v[..., :0] for k, v in tensors.items() if k.startswith("model.") and v.dim()}
        ),
    ],
)
def test_a_checkpoint_that_lacks_something_is_damaged(damage, data, tmp_path):
    path = tmp_path / "checkpoint"
    Trainer(SHAPES["skip"], options(), data, path).run(io.StringIO(), lambda line: None)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    damage(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(FormatError, match=r"is damaged .*leave out --resume"):
        Trainer(SHAPES["skip"], options(), data, path).resume()
