"""Models of images as an experiment; that it runs is `test_experiments`' subject."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import fig04_vision
import small_vit
import torch
from safetensors.torch import save_file
from world import World

from nwc.errors import ConfigError
from nwc.integrations.images import load_image_model


def test_a_checkpoint_of_torch_gives_the_same_logits(tmp_path):
    # The oracle: torch's own encoder, from the state dict as it was published.
    torch.manual_seed(0)
    d, heads, patch, side = 16, 4, 4, 3
    layer = torch.nn.TransformerEncoderLayer(d, heads, 24, 0.0, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    outside = {
        "cls_token": torch.randn(1, 1, d),
        "pos_embed": torch.randn(1, 1 + side**2, d),
        "patch_embed.proj.weight": torch.randn(d, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(d),
        "mlp_head.0.weight": torch.randn(d),
        "mlp_head.0.bias": torch.randn(d),
        "mlp_head.1.weight": torch.randn(5, d),
        "mlp_head.1.bias": torch.randn(5),
    }
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = outside | {f"transformer.{k}": v for k, v in encoder.state_dict().items()}
    (tmp_path / "there").mkdir()
    save_file(state, tmp_path / "there" / "model.safetensors")
    folder = small_vit.convert(tmp_path / "there", tmp_path / "here", heads=heads)
    images = torch.randn(3, 3, patch * side, patch * side)
    functional = torch.nn.functional
    with torch.no_grad():
        x = functional.conv2d(
            images, outside["patch_embed.proj.weight"], outside["patch_embed.proj.bias"], patch
        )
        x = torch.cat([outside["cls_token"].expand(3, -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = encoder(x + outside["pos_embed"])[:, 0]
        x = functional.layer_norm(
            x, (d,), outside["mlp_head.0.weight"], outside["mlp_head.0.bias"]
        )
        wanted = functional.linear(x, outside["mlp_head.1.weight"], outside["mlp_head.1.bias"])
        found = load_image_model(folder)(pixel_values=images).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)

    state["stray"] = torch.zeros(2)
    save_file(state, tmp_path / "there" / "model.safetensors")
    with pytest.raises((ValueError, IndexError)):
        small_vit.convert(tmp_path / "there", tmp_path / "again", heads=heads)


def test_what_calibrates_does_not_judge(tmp_path):
    found = fig04_vision.study_of(World("tiny", None, tmp_path), "vit")
    assert found.calibration != found.images
    calibration, images = (np.load(path)["images"] for path in (found.calibration, found.images))
    assert not {x.tobytes() for x in calibration} & {x.tobytes() for x in images}


def test_small_wants_its_data(tmp_path):
    with pytest.raises(ConfigError, match="wants --data"):
        fig04_vision.study_of(World("small", None, tmp_path), "cifar10-vit")


def test_scale_full_asks_for_all_models():
    points = fig04_vision.points(World("full", None, fig04_vision.Path()))
    assert {point["model"] for point in points} == set(fig04_vision.HUB)
