import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nwc.integrations.images import load_image_model

FOLDER = Path(__file__).parents[2] / "experiments"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small_vit():
    return load("small_vit")


@pytest.fixture(scope="module")
def study(small_vit):
    return load("fig04_vision")


def test_a_checkpoint_of_torch_gives_the_same_logits(small_vit, tmp_path):
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


@pytest.fixture(scope="module")
def rows(study, tmp_path_factory):
    output = tmp_path_factory.mktemp("study") / "rows.jsonl"
    config = study.Fig04Vision(
        output=output, scale="tiny", bits=(6,), recovery_steps=2, device="cpu"
    )
    study.run(config)
    first = output.read_text()
    study.run(config)  # everything has its row
    assert output.read_text() == first
    return [json.loads(line) for line in first.splitlines()]


def test_every_method_and_variant_has_its_row(study, rows):
    found = {(row["method"], row["variant"]) for row in rows}
    assert found == {(m, v) for m, variants in study.METHODS.items() for v in variants}
    for row in rows:
        assert row["images"] == 32
        assert row["classifier"] == "head"
        assert 0 < row["kl_divergence"] < 0.1
        assert (row["calibration_images"] == 0) == (row["variant"] == "data-free")
        if row["method"] in ("nwc", "ecsq"):
            assert row["bits"] == pytest.approx(6, abs=0.15)


def test_what_calibrates_does_not_judge(study, tmp_path):
    found = study._tiny(tmp_path, seed=0)
    assert found.calibration != found.images
    calibration, images = (
        study.np.load(path)["images"] for path in (found.calibration, found.images)
    )
    assert not {x.tobytes() for x in calibration} & {x.tobytes() for x in images}


def test_table_and_picture(study, rows, tmp_path):
    lines = study.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| 6 bits |" in lines[0]
    pytest.importorskip("matplotlib")
    load("plot_fig04_vision").plot(rows, tmp_path / "figures" / "a.svg")
    assert (tmp_path / "figures" / "a.svg").stat().st_size < 100_000


def test_small_wants_its_data(study, tmp_path):
    with pytest.raises(SystemExit, match="wants --data"):
        study.run(study.Fig04Vision(output=tmp_path / "a.jsonl", scale="small"))
