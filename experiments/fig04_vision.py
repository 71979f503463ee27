r"""Figure 4, bottom: models of images, accuracy and divergence against bits.

    python experiments/fig04_vision.py --scale small --data FOLDER

Images that calibrate, images that a head is fitted to and images that judge are never the same.
Calibrated trials are without fine-tuning, as in the paper's figure; `nwc` is shown fine-tuned and
data-free as well. `small` is a ViT of 0.8 M weights on CIFAR-10: of 2,000 test images those in odd
places judge, 512 of the others calibrate. Scale full is CLIP, SigLIP and DINOv2 on ImageNet-1k,
whose licence must be accepted on the hub: a GPU with 16 GB, 32 GB of memory, since streamed images
wait there, and about a day of an A100, half of it reading images. It has not been run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rate_accuracy as ra
import style
import torch
from runner import Experiment, Point, Row, main
from small_vit import SmallViT, SmallViTConfig, convert, save_image_processor
from world import World

from nwc.cli.compress import Compress
from nwc.cli.evaluate_images import ImageTask
from nwc.cli.inspect import inspect_folder
from nwc.cli.trials import AS_IT_COMES, WAYS, options_of, rates
from nwc.compression.source import find_model
from nwc.errors import ConfigError
from nwc.integrations.images import load_image_model

CALIBRATION_IMAGES = 512
"""As in App. A.2."""

PROBE_IMAGES = 20_000
"""That a linear head is fitted to, of ImageNet's training set."""

SHOWN = {
    "data-free": ("nwc", "ecsq", "rtn"),
    "feedback": ("nwc", "ecsq", "gptq", "qtip"),
    AS_IT_COMES: ("nwc",),
}

IMAGENET = "ILSVRC/imagenet-1k:default"
HUB = {
    "clip-vit-large-patch14": "openai/clip-vit-large-patch14",
    "siglip-base-patch16-224": "google/siglip-base-patch16-224",
    "dinov2-large": "facebook/dinov2-large",
}
"""The paper names CLIP-ViT-L/16, which its authors did not publish; L/14 is the nearest."""


class Study(NamedTuple):
    """A model and its images.

    Args:
        model: folder or hub name.
        calibration: images that calibrate.
        images: images that judge.
        probe: images that a head is fitted to.
        patches: of an image.
    """

    model: str
    calibration: str
    images: str
    probe: str | None
    patches: int


def points(world: World) -> list[Point]:
    """Models, variants, methods, rates."""
    names = {"tiny": ["vit"], "small": ["cifar10-vit"], "full": list(HUB)}[world.scale]
    bits = (6.0,) if world.scale == "tiny" else ra.BITS
    return [
        {"model": name, "method": method, "variant": variant, "asked": asked, "seed": 0}
        for name in names
        for variant, methods in SHOWN.items()
        for method in methods
        if method in WAYS and (world.scale != "tiny" or method != "qtip")
        for asked in rates(WAYS[method], bits)
    ]


def measure(world: World, point: Point) -> list[Row]:
    """Compress, look at the bits, judge."""
    study = study_of(world, point["model"])
    variant = point["variant"]
    options = options_of(
        WAYS[point["method"]], variant, bits=point["asked"], calibration=study.calibration,
        seed=point["seed"],
    )  # fmt: skip
    tokens = CALIBRATION_IMAGES * study.patches
    options |= {"calibration_tokens": tokens, "survey_tokens": tokens, "threads": 1}
    if world.scale == "tiny":
        options["recovery_steps"] = 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compressed"
        Compress(model=study.model, output=out, device=device, **options).make()
        task = ImageTask(
            source=study.images, folder=out, probe_images=study.probe, probe_limit=PROBE_IMAGES
        )
        original = load_image_model(find_model(study.model), device=device)
        found = task.run(load_image_model(out, device=device), original)
        bits = inspect_folder(out)["bits_per_parameter"]
    images = 0 if variant == "data-free" else CALIBRATION_IMAGES
    return [{"bits": bits["tensors"], "file_bits": bits["file"], **found,
             "calibration_images": images}]  # fmt: skip


def study_of(world: World, name: str) -> Study:
    """A model and its images; those of the smaller scales are made on the spot.

    Raises:
        ConfigError: scale small without its data.
    """
    if world.scale == "full":
        probe = f"{IMAGENET}:train" if "dino" in name else None
        patches = 196 if "patch16" in name else 256
        return Study(HUB[name], f"{IMAGENET}:train", f"{IMAGENET}:validation", probe, patches)
    folder = world.scratch / "vision" / name
    folder.mkdir(parents=True, exist_ok=True)
    if world.scale == "tiny":
        return _tiny(folder)
    if world.data is None:
        raise ConfigError("scale small wants --data: a folder with models, text and images")
    vision = world.data / "vision"
    model = folder / "model"
    if not model.exists():
        convert(vision / "cifar10-vit", model)
    with np.load(vision / "cifar10_test_2000.npz") as arrays:
        return _split(folder, str(model), arrays["x"], arrays["y"], patches=64)


def _tiny(folder: Path) -> Study:
    config = SmallViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, num_labels=4, architectures=["SmallViT"],
    )  # fmt: skip
    model = folder / "model"
    if not model.exists():
        torch.manual_seed(0)
        SmallViT(config).save_pretrained(model)
        save_image_processor(model, 16)
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(64, 16, 16, 3), dtype=np.uint8)
    return _split(folder, str(model), images, generator.integers(4, size=64), patches=16)


def _split(
    folder: Path, model: str, images: np.ndarray, labels: np.ndarray, *, patches: int
) -> Study:
    """Even images may calibrate, odd ones judge."""
    parts = {"calibration": slice(0, None, 2), "images": slice(1, None, 2)}
    paths = {name: folder / f"{name}.npz" for name in parts}
    for name, part in parts.items():
        if not paths[name].exists():
            np.savez(paths[name], images=images[part], labels=labels[part])
    return Study(model, str(paths["calibration"]), str(paths["images"]), None, patches)


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy and divergence, a pair of panels for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = style.panels(2 * len(models), width=3.9, columns=2)
    for i, model in enumerate(models):
        mine = [row for row in rows if row["model"] == model]
        for axis, quantity in zip(
            axes[2 * i : 2 * i + 2], ("accuracy", "kl_divergence"), strict=True
        ):
            _panel(axis, mine, quantity)
    style.legend(figure, axes)
    style.save(figure, path)


def _panel(axis: style.Axes, rows: list[Row], quantity: str) -> None:
    for (method, variant), group in ra.grouped(rows).items():
        name = f"{method} tuned" if variant == AS_IT_COMES else method
        free = variant == "data-free"
        style.curve(
            axis, [row["bits"] for row in group], [row[quantity] for row in group], name,
            hollow=free, label=style.look(name).label + (", data-free" if free else ""),
        )  # fmt: skip
    if quantity == "accuracy":
        axis.axhline(rows[0]["reference_accuracy"], color="0.3", linewidth=0.8, linestyle="--")
        axis.set_ylabel(f"top-1 accuracy on {rows[0]['images']:,} images")
    else:
        axis.set_yscale("log")
        axis.set_ylabel("KL divergence (nats per image)")
    axis.set_title(rows[0]["model"])
    axis.set_xlabel("bits per parameter, overheads counted")


def table(rows: list[Row]) -> str:
    """All rows."""
    head = ("Model", "Method", "Variant", "Bits", "KL", "Top-1 agreement", "Accuracy",
            "(original)")  # fmt: skip
    names = ("model", "method", "variant", "bits", "kl_divergence", "top1_agreement", "accuracy",
             "reference_accuracy")  # fmt: skip
    order = sorted(rows, key=lambda r: (r["model"], r["variant"], r["method"], r["bits"]))
    return style.markdown(head, [[row[name] for name in names] for row in order])


EXPERIMENT = Experiment(
    name="fig04_vision", points=points, measure=measure, plot=plot, table=table
)

if __name__ == "__main__":
    main("fig04_vision")
