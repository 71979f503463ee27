"""How long a model takes from its folder to BF16 weights in memory, compressed and plain."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nwc.coding.tables import TableBank
from nwc.evaluation.benchmark import alternate, check_small, machine, ratio
from nwc.evaluation.load_once import in_new_process, weights_of
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.layout import SINGLE_FILE
from nwc.formats.shards import Shard, read_range
from nwc.formats.writer import CheckpointWriter
from nwc.integrations.loading import load_model
from nwc.kernels import rans_numba
from nwc.methods.base import LayerMethod, LayerWeight

RATE = 200e6
PIECE = 2**20


class Throttle:
    """A `Reader` as fast as a disk or network of a given rate.

    Args:
        rate: bytes per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, path: Path, start: int, size: int) -> memoryview:
        """The bytes, after the time that they take."""
        begun = time.perf_counter()
        data = read_range(path, start, size)
        time.sleep(max(0.0, begun + size / self.rate - time.perf_counter()))
        return data


def bench_load(
    method: LayerMethod, log2_gain: float, width: int = 1024, repeats: int = 5
) -> dict[str, Any]:
    """A Llama of random weights: compressed against safetensors.

    Args:
        method: how to compress.
        log2_gain: at which gain.
        width: of the model, which has four blocks.
        repeats: counted turns.
    """
    check_small(method, log2_gain)
    with tempfile.TemporaryDirectory() as folder:
        plain, compressed = Path(folder) / "plain", Path(folder) / "compressed"
        weights = random_llama(plain, width)
        compress_data_free(plain, weights, compressed, method, log2_gain)
        _check(compressed)
        slow = Throttle(RATE)
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "weights, cached": (
                partial(weights_of, compressed),
                partial(weights_of, plain),
            ),
            "model, cached": (
                lambda: _touch(load_model(compressed)),
                lambda: _touch(_plain_model(plain)),
            ),
            "weights at 200 MB/s": (
                lambda: Checkpoint(compressed, reader=slow).state_dict(),
                partial(_read_all, plain / SINGLE_FILE, slow),
            ),
        }
        rows = [
            _row("weights, cached, in a new process", _new_processes(plain, compressed, repeats))
        ]
        for name, (ours, theirs) in pairs.items():
            rows.append(_row(name, alternate({"nwc": ours, "plain": theirs}, repeats)))
        sizes = [sum(p.stat().st_size for p in f.iterdir()) for f in (plain, compressed)]
    return {
        "machine": machine(),
        "parameters": sum(v.numel() for v in weights.values()),
        "plain_bytes": sizes[0],
        "compressed_bytes": sizes[1],
        "rows": rows,
    }


def _new_processes(plain: Path, compressed: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds by name, in turns."""
    turns = [(in_new_process(compressed), in_new_process(plain)) for _ in range(repeats)]
    return {"nwc": [ours for ours, _ in turns], "plain": [theirs for _, theirs in turns]}


def _row(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "what": name,
        "nwc seconds": statistics.median(seconds["nwc"]),
        "safetensors seconds": statistics.median(seconds["plain"]),
        "times its time": ratio(seconds, "nwc", "plain"),
    }


def random_llama(folder: Path, width: int) -> dict[str, Tensor]:
    """Save a Llama of four blocks with random weights, in BF16.

    Args:
        folder: to make.
        width: of the model, a multiple of 16.

    Returns:
        Its tensors, by name.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width * 11 // 64 * 16,
        num_hidden_layers=4,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    folder.mkdir()
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, folder / SINGLE_FILE, {"format": "pt"})
    model.config.save_pretrained(folder)
    return weights


def compress_data_free(
    source: Path,
    weights: dict[str, Tensor],
    output: Path,
    method: LayerMethod,
    log2_gain: float,
) -> None:
    """A folder's weights, data-free, all matrices alike but embeddings.

    Args:
        source: folder of the model.
        weights: its tensors.
        output: folder to make.
        method: how to compress.
        log2_gain: at which gain.
    """
    config = json.loads((source / "config.json").read_text())
    bank = TableBank()
    with CheckpointWriter(output, source) as writer:
        writer.add_codec(method.codec, None)
        for key, value in weights.items():
            if value.dim() < 2 or "embed" in key:
                writer.add_kept(key, value)
                continue
            layer = [LayerWeight(name=key, W=value.float())]
            writer.add_stream(key, method.compress(layer, None, log2_gain, bank)[0].data)
        writer.finish_checkpoint(bank, config, {"method": "bench"})
        writer.publish()


def _check(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    state = checkpoint.state_dict()
    for key in checkpoint.compressed_keys():
        expected = checkpoint.compressed(key).weight(
            torch.bfloat16, decoder=rans_numba.decode_tile
        )
        if not torch.equal(state[key], expected):
            raise AssertionError(f"{key} differs from the reference decoder; nothing is timed")


def _plain_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def _touch(model: torch.nn.Module) -> float:
    """Read something of every page, so that nothing is left to be read later."""
    return sum(float(p.detach().view(-1)[::1024].sum()) for p in model.parameters())


def _read_all(path: Path, reader: Throttle) -> dict[str, Tensor]:
    shard = Shard(path, reader)
    return {key: shard.tensor(key) for key in shard.entries}
