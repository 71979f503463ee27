"""A trained codec on disk: FP16 safetensors with its config, and a JSON card beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.errors import ConfigError, FormatError
from nwc.formats import layout
from nwc.formats.shards import Shard

_METADATA = "nwc_codec"


def save_codec(codec: WeightCodec, path: Path, card: dict[str, Any]) -> None:
    """Write a codec in FP16, and its card as `path` with suffix .json.

    Args:
        codec: a trained codec.
        path: a .safetensors file; replaced atomically.
        card: what it was trained on and what was measured, JSON-ready.
    """
    tensors = {k: v.detach().half().contiguous() for k, v in codec.state_dict().items()}
    metadata = {"version": f"{layout.MAJOR}.{layout.MINOR}", "config": codec.config.to_dict()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {_METADATA: json.dumps(metadata)})
    partial.replace(path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


def load_codec(path: Path) -> WeightCodec:
    """Read a codec.

    Raises:
        FormatError: the file is not a codec, or a newer one.
    """
    codec = WeightCodec(load_config(path))
    shard = Shard(path)
    fill(codec, {key: shard.tensor(key) for key in shard.entries}, str(path))
    return codec


def load_config(path: Path) -> CodecConfig:
    """Read what a codec is made of, and nothing else.

    Raises:
        FormatError: the file is not a codec, or a newer one.
    """
    shard = Shard(path)
    if _METADATA not in shard.metadata:
        raise FormatError(
            f"{path} is a safetensors file but not a codec; train one with nwc train"
        )
    metadata = layout.parse_object(shard.metadata[_METADATA], f"header of {path}")
    layout.check_version(metadata.get("version"), str(path))
    try:
        return CodecConfig.from_dict(metadata.get("config", {}))
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error


def fill(module: torch.nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load tensors into a module of exactly their names and shapes.

    Raises:
        FormatError: they do not fit, or are not finite.
    """
    own = module.state_dict()
    for key in sorted(set(own) | set(tensors)):
        got = list(tensors[key].shape) if key in tensors else "no such tensor"
        wanted = list(own[key].shape) if key in own else "no such tensor"
        if got != wanted:
            raise FormatError(f"{where}: codec tensor {key} is {got}, wanted {wanted}")
        if not torch.isfinite(tensors[key]).all():
            raise FormatError(f"{where}: codec tensor {key} is not finite")
    module.load_state_dict({key: value.float() for key, value in tensors.items()})
    module.requires_grad_(False).eval()


def fingerprint(codec: WeightCodec) -> str:
    """XXH3-64 of config and synthesis transform, all that a reader needs."""
    digest = xxhash.xxh3_64(json.dumps(codec.config.to_dict(), sort_keys=True).encode())
    digest.update(synthesis_vector(codec).numpy().tobytes())
    return digest.hexdigest()


def synthesis_vector(codec: WeightCodec) -> Tensor:
    """Parameters of the synthesis transform in canonical order, FP16; empty if it has none."""
    if codec.g_s is None:
        return torch.zeros(0, dtype=torch.float16)
    return torch.cat([p.detach().half().cpu().flatten() for p in codec.g_s.parameters()])


def fill_synthesis(codec: WeightCodec, vector: Tensor, where: str) -> None:
    """Inverse of `synthesis_vector`; what only an encoder needs is dropped.

    Raises:
        FormatError: the vector is not that of such a codec, or not finite.
    """
    codec.g_a = codec.density = None
    wanted = 0 if codec.g_s is None else sum(p.numel() for p in codec.g_s.parameters())
    if vector.dtype != torch.float16 or tuple(vector.shape) != (wanted,):
        raise FormatError(
            f"{where}: the synthesis transform is {vector.dtype} {list(vector.shape)}, wanted "
            f"float16 [{wanted}]"
        )
    if not torch.isfinite(vector).all():
        raise FormatError(f"{where}: the synthesis transform is not finite")
    if codec.g_s is not None:
        codec.g_s.requires_grad_(False)
        torch.nn.utils.vector_to_parameters(vector.float(), codec.g_s.parameters())
    codec.eval()
