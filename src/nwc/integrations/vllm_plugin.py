"""vLLM: compressed folders, decoded while they are loaded.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Two
things are registered under the name nwc: a quantisation method, so that vLLM accepts the folder's
config.json and builds ordinary layers, and a load format that feeds them decoded weights:

    LLM("OUT", load_format="nwc")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nwc.errors import FormatError
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.layout import QUANT_METHOD


def register() -> None:
    """Register the method and the load format with vLLM; again is nothing new."""
    from vllm.model_executor.layers import quantization

    if QUANT_METHOD in quantization.QUANTIZATION_METHODS:
        return
    from vllm.model_executor.model_loader import register_model_loader

    config, loader = _classes()
    quantization.register_quantization_config(QUANT_METHOD)(config)
    register_model_loader(QUANT_METHOD)(loader)


def decoded_weights(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a compressed folder, one after the other, as vLLM's models take them.

    Args:
        folder: compressed.
        dtype: of floating-point tensors.

    Raises:
        FormatError, BitstreamError: the folder is damaged, or not compressed.
    """
    checkpoint = Checkpoint(folder)
    for key in checkpoint.keys():  # noqa: SIM118  (not a mapping)
        yield key, checkpoint.tensor(key, dtype)


def _classes() -> tuple[type, type]:
    """The two classes, which derive from classes of vLLM."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class NWCVllmConfig(QuantizationConfig):
        """Weights are decoded by the loader, so that layers are ordinary ones."""

        def get_name(self) -> str:
            return QUANT_METHOD

        def get_supported_act_dtypes(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16, torch.float32]

        @classmethod
        def get_min_capability(cls) -> int:
            return 0

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> NWCVllmConfig:
            return cls()

        def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:  # noqa: ANN401
            # For all others None means: as without quantisation.
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    class NWCModelLoader(BaseModelLoader):
        """Feeds a model the decoded weights."""

        def download_model(self, model_config: Any) -> None:  # noqa: ANN401
            _folder(model_config)

        def load_weights(self, model: nn.Module, model_config: Any) -> None:  # noqa: ANN401
            weights = decoded_weights(_folder(model_config), model_config.dtype)
            loaded = model.load_weights(weights)  # type: ignore[operator]
            if loaded is None:  # the model does not say
                return
            missing = sorted({name for name, _ in model.named_parameters()} - set(loaded))
            if missing:
                raise FormatError(
                    f"{model_config.model} lacks {len(missing)} tensors of the model, "
                    f"{missing[0]} first"
                )

    return NWCVllmConfig, NWCModelLoader


def _folder(model_config: Any) -> Path:  # noqa: ANN401
    """The model's folder; downloaded, if it is a hub name."""
    if Path(model_config.model).is_dir():
        return Path(model_config.model)
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow to import)

    return Path(snapshot_download(model_config.model, revision=model_config.revision))
