"""The plug-in: `AutoModelForCausalLM.from_pretrained` reads, and makes, compressed weights.

transformers 5 changed the hooks for quantisers between 5.0, 5.9 and 5.23, and the earlier ones
cannot decode a tensor before the experts of a block are merged. One step stayed the same: the
checkpoint's tensors, name by name and lazy, are handed to the loader. That is where this plug-in
comes in: it hands over tensors that decode when they are read, and everything after, renaming,
merging, casting, placing, tying, is done by transformers as for any checkpoint. So a model has
exactly the weights it would have from the decompressed folder.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from nwc.errors import ConfigError, NWCError
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.layout import QUANT_METHOD
from nwc.integrations.hf_config import NWCConfig
from nwc.integrations.hf_packing import Sources, pack_model, sources
from nwc.integrations.hf_saving import compressed_state_dict
from nwc.integrations.lazy_weights import LazyWeight
from nwc.integrations.on_the_fly import TemporaryCopy, compressed_copy
from nwc.integrations.packed import unpack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NWCQuantizer(HfQuantizer):
    """Loads compressed weights.

    Args:
        quantization_config: how.
        **kwargs: of transformers.
    """

    quantization_config: NWCConfig

    def __init__(self, quantization_config: NWCConfig, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(copy.copy(quantization_config), **kwargs)
        _take_part_in_loading()
        self.failures: list[NWCError] = []
        self.checkpoint: Checkpoint | None = None
        self._made_of: dict[str, Sources] = {}
        self._conversions: Any = None
        self._copy: TemporaryCopy | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of a model reads the same open files."""
        return copy.copy(self)

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Refuse what cannot be done.

        Raises:
            ConfigError: weights shall go to the disk.
        """
        device_map = kwargs.get("device_map")
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ConfigError(_NO_DISK)

    def weights(
        self,
        model: PreTrainedModel,
        checkpoint_files: list[str] | None,
        load_config: Any,  # noqa: ANN401  (LoadStateDictConfig)
    ) -> dict[str, LazyWeight]:
        """The tensors that transformers shall load, by the names that the checkpoint has.

        Args:
            model: as built, without weights; those that stay compressed are put in place here.
            checkpoint_files: paths of the shards.
            load_config: of transformers.

        Raises:
            FormatError, BitstreamError: the folder is damaged, or not compressed.
            ConfigError: there is none.
        """
        if not checkpoint_files:
            raise ConfigError(
                "quantization_config is NWCConfig, but there is no checkpoint to read; give the "
                "folder of a model"
            )
        folder = Path(checkpoint_files[0]).parent
        if not self.pre_quantized:
            config = self.quantization_config
            self._copy = compressed_copy(folder, config.compression)
            folder = self._copy.folder
            made = json.loads((folder / "config.json").read_text())
            config.describe(made["quantization_config"])
        self.checkpoint = checkpoint = Checkpoint(folder, self.quantization_config.codec)
        keys = checkpoint.keys()
        packed: set[str] = set()
        if self.quantization_config.mode == "packed":
            self._made_of = sources(model, keys, load_config.weight_mapping or [])
            packed = pack_model(model, checkpoint, self._made_of, load_config)
        return {k: LazyWeight(checkpoint, k, self.failures) for k in keys if k not in packed}

    def _process_model_after_weight_loading(
        self,
        model: PreTrainedModel,
        **kwargs: Any,  # noqa: ANN401
    ) -> PreTrainedModel:
        if self.quantization_config.mode == "dense":
            # From here on this is an ordinary model, and is saved as one.
            self.remove_quantization_config(model)
            self.checkpoint = self._copy = None
        else:
            # What is saved has the checkpoint's own names already.
            self._conversions = model._weight_conversions
            model._weight_conversions = []
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """What `save_pretrained` writes: compressed weights, as they were."""
        if self.checkpoint is None:
            return None, {}
        names = {keys[None][0]: name for name, keys in self._made_of.items() if None in keys}
        return compressed_state_dict(model, self.checkpoint, names)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str) -> PreTrainedModel:
        # A config that was saved spells its dtype.
        wanted: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        for module in model.modules():
            unpack(module, wanted)
        model._weight_conversions = self._conversions
        return model

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` can write the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on top of the model."""
        return True


_NO_DISK = (
    "weights cannot be offloaded to the disk while they decode; leave disk out of device_map"
)


def register() -> None:
    """Tell transformers about `NWCConfig` and `NWCQuantizer`; again is nothing new."""
    if QUANT_METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    auto.register_quantization_config(QUANT_METHOD)(NWCConfig)
    auto.register_quantizer(QUANT_METHOD)(NWCQuantizer)
    merge = auto.AutoHfQuantizer.merge_quantization_configs

    @functools.wraps(merge)
    def merge_ours(stored: object, given: object) -> object:
        # transformers has a list of classes whose options may be given for a folder that is
        # quantised already; no plug-in can be on it in every version.
        if not isinstance(given, NWCConfig):
            return merge(stored, given)
        config = merge(stored, None)
        if not isinstance(config, NWCConfig):
            return merge(stored, given)  # which explains that these do not fit
        config.adopt(given)
        return config

    auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(merge_ours)


@functools.cache
def _take_part_in_loading() -> None:
    """Have the loader take the tensors of a compressed folder from the quantiser."""
    # This module is imported while transformers imports its quantisers, before there are models.
    from transformers import PreTrainedModel  # noqa: PLC0415

    theirs = PreTrainedModel.__dict__["_load_pretrained_model"]

    @functools.wraps(theirs.__func__)
    def load(
        cls: type[PreTrainedModel],
        model: PreTrainedModel,
        state_dict: dict[str, Any] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,  # noqa: ANN401  (LoadStateDictConfig)
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        go_on = theirs.__get__(None, cls)
        quantizer = load_config.hf_quantizer
        if not isinstance(quantizer, NWCQuantizer):
            return go_on(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        if "disk" in (load_config.device_map or {}).values():
            raise ConfigError(_NO_DISK)
        weights = quantizer.weights(model, checkpoint_files, load_config)
        # What they decode to is ordinary: nothing in there has to know of quantisation.
        ordinary = replace(load_config, hf_quantizer=None)
        try:
            loaded = go_on(model, weights, checkpoint_files, ordinary, *args, **kwargs)
        except Exception as error:
            if quantizer.failures:
                raise quantizer.failures[0] from error
            raise
        if quantizer.failures:
            raise quantizer.failures[0]
        return loaded

    PreTrainedModel._load_pretrained_model = classmethod(load)
