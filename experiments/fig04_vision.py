r"""Models of images at several rates (paper Fig. 4, bottom): accuracy against bits per weight.

    python experiments/fig04_vision.py --scale small --data DATA/vision \
      --output benchmarks/results/fig04_vision.jsonl
    python experiments/plot_fig04_vision.py benchmarks/results/fig04_vision.jsonl \
      docs/figures/fig04_vision.svg

Every row is one model, method, variant and rate: its accuracy, the original's, and how far the
distribution over classes is from the original's. Images that calibrate, images that a head is
fitted to and images that judge are never the same. Variants:

- `data-free`: no images at all;
- `calibrated`: Hessians and feedback, no fine-tuning, as in the paper's figure (512 images);
- `recovery`: fine-tuning of blocks on top of that, which the paper leaves out here.

Scales:

- `tiny`: a random model and random images, in seconds; its numbers mean nothing.
- `small`: a ViT of 0.8 M weights on CIFAR-10. Of 2,000 test images those in odd places judge, 512
  of the others calibrate. About 15 minutes of one core.
- `full`: CLIP, SigLIP and DINOv2 on ImageNet-1k, whose licence must be accepted on the hub. It
  needs a GPU with 16 GB, 32 GB of memory, since streamed images wait there, and 4 GB of disk for
  the models; by counting operations (96 runs, each 50,000 images through two models of 0.04 to
  0.16 TFLOP an image), about a day of an A100, half of it reading images. It has not been run.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro

import nwc
from nwc.cli.compress import Compress
from nwc.cli.evaluate_images import ImageTask
from nwc.compression.source import find_model
from nwc.evaluation.benchmark import machine
from nwc.integrations.images import load_image_model

sys.path.insert(0, str(Path(__file__).parent))

from small_vit import SmallViT, SmallViTConfig, convert, save_image_processor

Row = dict[str, Any]

CALIBRATION_IMAGES = 512
"""As in App. A.2."""

PROBE_IMAGES = 20_000
"""That a linear head is fitted to, of ImageNet's training set."""

VARIANTS = ("data-free", "calibrated", "recovery")

METHODS: dict[str, tuple[str, ...]] = {
    "nwc": ("data-free", "calibrated", "recovery"),
    "ecsq": ("data-free", "calibrated"),
    "gptq": ("calibrated",),
    "rtn": ("data-free",),
}
"""Rounding to nearest sees no inputs, and without inputs GPTQ is the same."""

IMAGENET = "ILSVRC/imagenet-1k:default"
HUB = ("openai/clip-vit-large-patch14", "google/siglip-base-patch16-224", "facebook/dinov2-large")
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


@dataclass(frozen=True, kw_only=True)
class Fig04Vision:
    """What to measure."""

    output: Path = Path(__file__).parent.parent / "benchmarks/results/fig04_vision.jsonl"
    """JSONL file to write; what is there is not measured again."""
    scale: Literal["tiny", "small", "full"] = "small"
    """See above."""
    data: Path | None = None
    """Folder with cifar10-vit and cifar10_test_2000.npz, for scale small."""
    bits: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """Bits per weight over the compressed weights."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Of `nwc compress --method`."""
    recovery_steps: int = 64
    """Fine-tuning steps after every group of layers."""
    device: str = "auto"
    """Where to compute."""
    seed: int = 0
    """Of everything random."""


def run(config: Fig04Vision) -> None:
    """Compress and evaluate whatever has no row yet."""
    config.output.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(config.output) if config.output.exists() else []
    done = {(row["model"], row["method"], row["variant"], row["asked"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        for study in _studies(config, Path(scratch)):
            name = Path(study.model).name
            wanted = [
                (method, variant, bits)
                for variant in VARIANTS  # the costly last
                for bits in config.bits
                for method in config.methods
                if variant in METHODS[method] and (name, method, variant, bits) not in done
            ]
            for each in wanted:
                row = _measure(config, study, *each, Path(scratch) / "out")
                with config.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _measure(
    config: Fig04Vision, study: Study, method: str, variant: str, bits: float, out: Path
) -> Row:
    calibrated = variant != "data-free"
    compress = Compress(
        model=study.model,
        output=out,
        bits=bits,
        method=method,  # type: ignore[arg-type]
        calibration=study.calibration if calibrated else None,
        data_free=not calibrated,
        calibration_tokens=CALIBRATION_IMAGES * study.patches,
        survey_tokens=CALIBRATION_IMAGES * study.patches,
        no_recovery=variant == "calibrated",
        recovery=variant == "recovery",
        recovery_steps=config.recovery_steps,
        seed=config.seed,
        device=config.device,
        threads=1,
        overwrite=True,
        json=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        compress.run()
    report = json.loads((out / "report.json").read_text())
    task = ImageTask(
        source=study.images, folder=out, probe_images=study.probe, probe_limit=PROBE_IMAGES
    )
    device = "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    original = load_image_model(find_model(study.model), device=device)
    found = task.run(load_image_model(out, device=device), original)
    return {
        "model": Path(study.model).name,
        "method": method,
        "variant": variant,
        "asked": bits,
        "bits": report["bits_per_parameter"]["tensors"],
        "file_bits": report["bits_per_parameter"]["file"],
        **found,
        "calibration_images": CALIBRATION_IMAGES if calibrated else 0,
        "recovery_steps": config.recovery_steps if variant == "recovery" else None,
        "scale": config.scale,
        "seed": config.seed,
        "nwc": nwc.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def _studies(config: Fig04Vision, scratch: Path) -> Iterator[Study]:
    if config.scale == "tiny":
        yield _tiny(scratch, config.seed)
    elif config.scale == "small":
        if config.data is None:
            raise SystemExit("--scale small wants --data with cifar10-vit and its test images")
        model = convert(config.data / "cifar10-vit", scratch / "cifar10-vit")
        with np.load(config.data / "cifar10_test_2000.npz") as arrays:
            images, labels = arrays["x"], arrays["y"]
        yield _split(scratch, str(model), images, labels, patches=64)
    else:
        for name in HUB:
            probe = f"{IMAGENET}:train" if "dino" in name else None
            patches = 256 if "14" in name or "dino" in name else 196
            yield Study(name, f"{IMAGENET}:train", f"{IMAGENET}:validation", probe, patches)


def _tiny(scratch: Path, seed: int) -> Study:
    torch.manual_seed(seed)
    config = SmallViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        num_labels=4,
        architectures=["SmallViT"],
    )
    folder = scratch / "tiny-vit"
    SmallViT(config).save_pretrained(folder)
    save_image_processor(folder, 16)
    generator = np.random.default_rng(seed)
    images = generator.integers(256, size=(64, 16, 16, 3), dtype=np.uint8)
    return _split(scratch, str(folder), images, generator.integers(4, size=64), patches=16)


def _split(
    scratch: Path, model: str, images: np.ndarray, labels: np.ndarray, *, patches: int
) -> Study:
    """Even images may calibrate, odd ones judge."""
    parts = {"calibration": slice(0, None, 2), "images": slice(1, None, 2)}
    for name, part in parts.items():
        np.savez(scratch / f"{name}.npz", images=images[part], labels=labels[part])
    paths = {name: str(scratch / f"{name}.npz") for name in parts}
    return Study(model, paths["calibration"], paths["images"], None, patches)


def table(rows: list[Row]) -> str:
    """KL divergence, agreement and accuracy by method and rate, as Markdown."""
    rates = sorted({row["asked"] for row in rows})
    lines = ["| Method | " + " | ".join(f"{rate:g} bits" for rate in rates) + " |"]
    lines.append("|---|" + "---|" * len(rates))
    groups: dict[tuple[str, str, str], dict[float, Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"], row["variant"]), {})[row["asked"]] = row
    for (_, method, variant), mine in groups.items():
        cells = [
            f"{mine[r]['kl_divergence']:.2g}, {100 * mine[r]['top1_agreement']:.1f} %, "
            f"{100 * mine[r]['accuracy']:.1f} % ({mine[r]['bits']:.2f})"
            if r in mine
            else ""
            for r in rates
        ]
        lines.append(f"| {method}, {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(config: Fig04Vision) -> None:
    """Measure, and print what was measured."""
    run(config)
    print(table(read_rows(config.output)))


if __name__ == "__main__":
    main(tyro.cli(Fig04Vision))
