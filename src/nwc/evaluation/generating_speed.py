"""How fast a model generates: as it was, decoded while loading, and decoded layer by layer.

`generate` of transformers, greedy, as many tokens as asked for and no fewer. Every text begins
with one token, so that each step takes one token of each text and all steps are alike.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nwc.errors import ConfigError
from nwc.evaluation.benchmark import alternate, machine, ratio
from nwc.evaluation.loading_speed import random_llama
from nwc.formats.checkpoint import Checkpoint, is_compressed
from nwc.integrations.loading import load_any, model_from_weights, weight_bytes
from nwc.integrations.packed import buffer_bytes, packed_matrices
from nwc.kernels import rans_numba

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCHES = (1, 8, 64)

Compress = Callable[[Path, Path], object]
"""(folder of a model, folder to make)."""


def bench_generate(
    compress: Compress,
    model: Path | None = None,
    *,
    width: int = 1024,
    new_tokens: int = 16,
    batches: Sequence[int] = BATCHES,
    repeats: int = 3,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Tokens per second in BF16 for each mode and batch size.

    Modes: `original`, the folder itself; `dense`, compressed and decoded while loading; `packed`,
    compressed, each matrix decoded when it is used. All are in memory at once and take turns. Of a
    folder that is compressed already there is no `original`; `dense` is what it decodes to.

    Args:
        compress: how, if the folder is not compressed yet.
        model: folder of a model, compressed or not; None: a Llama of random weights.
        width: of that.
        new_tokens: to generate for each text.
        batches: texts at once.
        repeats: counted turns.
        device: where the models run.

    Raises:
        ConfigError: the model takes fewer tokens.
        AssertionError: logits of a mode differ from those of the decompressed weights.
    """
    with tempfile.TemporaryDirectory() as made:
        source = model
        if source is None:
            source = Path(made) / "plain"
            random_llama(source, width)
        folder = source
        if not is_compressed(source):
            folder = Path(made) / "compressed"
            compress(source, folder)
        models = {
            mode: load_any(folder, torch.bfloat16, device, mode=mode)
            for mode in ("dense", "packed")
        }
        _check(models, folder, device)
        if folder != source:
            models = {"original": load_any(source, torch.bfloat16, device), **models}
        _check_length(models["dense"], new_tokens)
        rows = [
            row
            for batch in batches
            for row in _generating(models, batch, new_tokens, repeats, torch.device(device))
        ]
    return {
        "machine": machine() if torch.device(device).type == "cpu" else _gpu(device),
        "model": "random Llama" if model is None else model.name,
        "parameters": sum(p.numel() for p in models["dense"].parameters()),
        "new_tokens": new_tokens,
        "weights_megabytes": {mode: _megabytes(each) for mode, each in models.items()},
        "packed_buffers_megabytes": buffer_bytes() / 1e6,
        "rows": rows,
    }


def _megabytes(model: PreTrainedModel) -> float:
    return sum(weight_bytes(model)) / 1e6


def _gpu(device: str | torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}; {machine()}"


def _generating(
    models: dict[str, PreTrainedModel],
    batch: int,
    new_tokens: int,
    repeats: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    ids = _tokens(models["dense"], (batch, 1), device)
    seconds = alternate(
        {mode: partial(_generate, model, ids, new_tokens) for mode, model in models.items()},
        repeats,
    )
    rows = []
    for mode in models:
        median = statistics.median(seconds[mode])
        rows.append(
            {
                "batch": batch,
                "mode": mode,
                "tokens/s": batch * new_tokens / median,
                "ms/token": 1e3 * median / new_tokens,
                "times dense's time": ratio(seconds, mode, "dense"),
            }
        )
    return rows


def _tokens(model: PreTrainedModel, shape: tuple[int, int], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    words = model.config.get_text_config().vocab_size
    return torch.randint(words, shape, generator=generator).to(device)


def _generate(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> Tensor:
    """Texts with exactly so many tokens more."""
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=0,
        )
    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)
    if made.shape[1] != ids.shape[1] + new_tokens:
        raise AssertionError(f"{made.shape[1] - ids.shape[1]} tokens came, not {new_tokens}")
    return made


def _check_length(model: PreTrainedModel, new_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and new_tokens >= limit:
        raise ConfigError(
            f"--new-tokens is {new_tokens}, the model takes {limit} tokens, the first included; "
            "give fewer"
        )


def _check(models: dict[str, PreTrainedModel], folder: Path, device: str | torch.device) -> None:
    """Raise AssertionError unless all models compute what the decompressed weights give.

    Those are decoded by another kernel, on the CPU.
    """
    checkpoint = Checkpoint(folder)
    weights = {key: checkpoint.kept(key) for key in checkpoint.kept_keys()}
    for key in checkpoint.compressed_keys():
        stream = checkpoint.compressed(key)
        weights[key] = stream.weight(torch.bfloat16, decoder=rans_numba.decode_tile)
    for key in set(checkpoint.keys()) - set(weights):
        weights[key] = torch.stack([weights.pop(part) for part in checkpoint.matrices(key)])
    config = checkpoint.config()
    assert config is not None  # load_any has read it
    reference = model_from_weights(config, weights, torch.bfloat16).to(device)
    del weights
    ids = _tokens(reference, (2, 8), torch.device(device))
    expected = _logits(reference, ids)
    for mode, model in models.items():
        if len(packed_matrices(model)) and _experts(model) != _experts(reference):
            # Packed experts run one by one, which rounds differently.
            reference.set_experts_implementation(_experts(model))
            expected = _logits(reference, ids)
        if not torch.equal(_logits(model, ids), expected):
            raise AssertionError(f"logits of {mode} differ from the reference; nothing is timed")


def _experts(model: PreTrainedModel) -> str | None:
    found: str | None = getattr(model.config, "_experts_implementation", None)
    return found


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
