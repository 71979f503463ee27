"""Q4_0 ... Q8_0 of llama.cpp, by the quantiser of package `gguf` itself: an outside reference.

Blocks of 32 weights with a scale in FP16, and in Q4_1 and Q5_1 a minimum: 4.5, 5, 5.5, 6 and 8.5
bits, all told. The package wants rows of a multiple of 32; as in `methods.gguf_k` the rows of a
matrix follow one another here, and the last block is padded with zeros and counted whole.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import torch

from nwc.coding.rate import BitBudget
from nwc.errors import ConfigError
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Quantised, Setting

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

BLOCK = 32


class GGUFLegacy(DenseMethod):
    """See the module.

    Args:
        bits: see `DenseMethod`.
        seed: see `DenseMethod`.
        device: see `DenseMethod`.

    Raises:
        ConfigError: the package is not installed, or there is no setting near so many bits.
    """

    name = "gguf_legacy"
    settings: ClassVar = {
        4.5: Setting("Q4_0", 4),
        5.0: Setting("Q4_1", 4),
        5.5: Setting("Q5_0", 5),
        6.0: Setting("Q5_1", 5),
        8.5: Setting("Q8_0", 8),
    }

    def __init__(self, bits: float, seed: int = 0, device: str = "cpu") -> None:
        if find_spec("gguf") is None:
            raise ConfigError(
                f"method {self.name} wants the package gguf, which is not installed; "
                "pip install 'neural-weight-compression[baselines]', or use --method gguf_k"
            )
        super().__init__(bits, seed, device)

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`; H plays no part."""
        from gguf import GGMLQuantizationType, quants

        kind = GGMLQuantizationType[self.setting.label]
        found = []
        for layer in layers:
            flat = layer.W.flatten()
            blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
            packed = quants.quantize(blocks.numpy(), kind)
            restored = torch.from_numpy(quants.dequantize(packed, kind)).flatten()
            payload = blocks.numel() * self.setting.bits // 8
            found.append(
                Quantised(
                    restored[: len(flat)].view_as(layer.W),
                    BitBudget(payload=payload, scales=packed.nbytes - payload),
                )
            )
        return found
