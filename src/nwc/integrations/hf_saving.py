"""`save_pretrained` of a model whose weights are packed: a compressed folder again."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nwc.formats import layout
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.kept import KeptDigest


def compressed_state_dict(
    model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything that a compressed checkpoint stores.

    Streams are copied as they are. A tensor that is kept uncompressed is taken from the model if
    it was changed there, as by training a norm; the hashes follow.

    Args:
        model: that was loaded from the checkpoint.
        checkpoint: which.
        names: of kept tensors -> their parameter or buffer.

    Returns:
        Tensors by their stored names, and the metadata of the file.
    """
    now = model.state_dict()
    kept_names = set(checkpoint.kept_keys())
    state: dict[str, Tensor] = {}
    everything, kept = KeptDigest(), KeptDigest()
    for shard in checkpoint.shards:
        for key in shard.entries:
            # A copy: tensors that share memory, as those of one file do, are taken for tied ones.
            value = shard.tensor(key).clone()
            if key in kept_names:
                if key in names:
                    value = _current(value, now[names[key]])
                kept.add(key, value)
            everything.add(key, value)
            state[key] = value
    facts = checkpoint.facts | {"kept": kept.hexdigest(), "hash": everything.hexdigest()}
    return state, {layout.METADATA_KEY: json.dumps(facts, separators=(",", ":"))}


def _current(stored: Tensor, loaded: Tensor) -> Tensor:
    """A parameter as it is now; as it was stored, if it only was cast when it was loaded."""
    loaded = loaded.detach().cpu()
    if torch.equal(stored.to(loaded.dtype), loaded):
        return stored
    return loaded.contiguous()
