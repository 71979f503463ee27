"""Which models of transformers the config.json of a folder may stand for.

The same config describes a backbone alone and the backbone with a head, so there may be several;
the checkpoint's tensors decide. Compression and loading must agree, so both ask here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

IMAGES = "pixel_values"
TOKENS = "input_ids"


def model_classes(config: Any) -> list[Any]:  # noqa: ANN401  (of transformers)
    """Classes that a checkpoint with this config may fill, the likeliest first.

    A config of a language model stands for that alone. Models of images are classifiers, pairs of
    an image and a text encoder, or image encoders without a head, in this order; one that
    `architectures` names comes before all others. Empty if transformers knows none of these.

    Args:
        config: what `AutoConfig` makes of config.json.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForZeroShotImageClassification,
    )

    def known(auto: Any) -> list[Any]:  # noqa: ANN401
        found = auto._model_mapping.get(type(config), None)
        return [] if found is None else list(found) if isinstance(found, tuple) else [found]

    if causal := known(AutoModelForCausalLM):
        return causal
    found = known(AutoModelForImageClassification) + known(AutoModelForZeroShotImageClassification)
    # A model of images and text that generates is more than its encoders.
    found += [kind for kind in known(AutoModel) if kind.main_input_name == IMAGES]
    named = getattr(config, "architectures", None) or []
    return sorted(dict.fromkeys(found), key=lambda kind: kind.__name__ not in named)


def settings_for(kind: Any, config: Any) -> Any:  # noqa: ANN401
    """The part of a config that a class is built from: that of the text, for some classes."""
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(kind, "config_class", None) == text:
        return config.get_text_config()
    return config


def settings_of(config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What transformers makes of the contents of config.json.

    Raises:
        KeyError: it names no model_type.
        ValueError: transformers does not know it.
    """
    from transformers import AutoConfig

    rest = {k: v for k, v in config.items() if k != "model_type"}
    return AutoConfig.for_model(config["model_type"], **rest)


def inputs_of(module: nn.Module) -> set[str]:
    """Which of `IMAGES` and `TOKENS` a module takes."""
    return {IMAGES, TOKENS} & set(inspect.signature(module.forward).parameters)


def is_classifier(model: nn.Module) -> bool:
    """Whether a model of images ends in the logits of its own classes."""
    from transformers import AutoModelForImageClassification

    known = AutoModelForImageClassification._model_mapping.get(type(model.config), None)
    return isinstance(model, known) if known is not None else False
