"""A small post-norm vision transformer as a model of transformers, and how its checkpoint is read.

The checkpoint is a state dict of `torch.nn.TransformerEncoder` (ReLU, norm after each addition)
with a patch embedding, a class token and positions before it and a norm and a linear head after
it. transformers has no model of this form; here is one, so that the command can compress,
calibrate and evaluate it. Queries, keys and values, one matrix of 3 d rows there, are three here.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class SmallViTConfig(PreTrainedConfig):
    """Shape of a `SmallViT`."""

    model_type = "small_vit"

    def __init__(
        self,
        hidden_size: int = 128,
        intermediate_size: int = 256,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 8,
        image_size: int = 32,
        patch_size: int = 4,
        **rest: object,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size = image_size
        self.patch_size = patch_size
        super().__init__(**rest)


class Block(nn.Module):
    """Attention and two linear layers, a norm after each."""

    def __init__(self, config: SmallViTConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up = nn.Linear(d, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[images, tokens, d] to the same."""
        x = hidden_states
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in self._qkv)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.o(seen.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(self.up(x).relu()))

    @property
    def _qkv(self) -> tuple[nn.Module, ...]:
        return self.q, self.k, self.v


class SmallViT(PreTrainedModel):
    """See the module."""

    config_class = SmallViTConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SmallViTConfig) -> None:
        super().__init__(config)
        d, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.positions = nn.Parameter(torch.zeros(1, 1 + patches, d))
        self.patches = nn.Conv2d(3, d, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> ImageClassifierOutput:
        """Logits of images [images, 3, height, width]."""
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return ImageClassifierOutput(logits=self.head(self.norm(x[:, 0])))


AutoConfig.register("small_vit", SmallViTConfig, exist_ok=True)
AutoModelForImageClassification.register(SmallViTConfig, SmallViT, exist_ok=True)


def convert(checkpoint: Path, output: Path, *, heads: int = 8) -> Path:
    """Write a checkpoint as a folder that transformers reads, image processor included.

    Args:
        checkpoint: folder with model.safetensors.
        output: folder to make.
        heads: of attention, which the tensors do not tell.
    """
    state = load_file(checkpoint / "model.safetensors")
    found = {ours: state.pop(theirs) for theirs, ours in _OUTSIDE.items()}
    count = 1 + max(int(key.split(".")[2]) for key in state)
    for i in range(count):
        theirs, ours = f"transformer.layers.{i}", f"layers.{i}"
        for leaf in ("weight", "bias"):
            parts = state.pop(f"{theirs}.self_attn.in_proj_{leaf}").chunk(3)
            found |= {f"{ours}.{n}.{leaf}": p for n, p in zip("qkv", parts, strict=True)}
            for there, here in _INSIDE.items():
                found[f"{ours}.{here}.{leaf}"] = state.pop(f"{theirs}.{there}.{leaf}")
    if state:
        raise ValueError(f"{checkpoint} has {len(state)} tensors more, {min(state)} first")
    patch = found["patches.weight"].shape[-1]
    side = round((found["positions"].shape[1] - 1) ** 0.5)
    config = SmallViTConfig(
        hidden_size=found["cls_token"].shape[-1],
        intermediate_size=len(found["layers.0.up.weight"]),
        num_hidden_layers=count,
        num_attention_heads=heads,
        image_size=side * patch,
        patch_size=patch,
        id2label=dict(enumerate(CLASSES[: len(found["head.weight"])])),
        architectures=["SmallViT"],
    )
    config.save_pretrained(output)
    tensors = {key: value.contiguous().clone() for key, value in found.items()}
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    save_image_processor(output, side * patch)
    return output


def save_image_processor(folder: Path, size: int) -> None:
    """Write the image processor of CIFAR-10: only scaled and normalised."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "size": {"height": size, "width": size},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


_OUTSIDE = {
    "cls_token": "cls_token",
    "pos_embed": "positions",
    "patch_embed.proj.weight": "patches.weight",
    "patch_embed.proj.bias": "patches.bias",
    "mlp_head.0.weight": "norm.weight",
    "mlp_head.0.bias": "norm.bias",
    "mlp_head.1.weight": "head.weight",
    "mlp_head.1.bias": "head.bias",
}
_INSIDE = {
    "self_attn.out_proj": "o",
    "linear1": "up",
    "linear2": "down",
    "norm1": "norm1",
    "norm2": "norm2",
}
