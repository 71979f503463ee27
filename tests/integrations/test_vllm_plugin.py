"""The vLLM plug-in against a stand-in: the names and signatures of vLLM that it uses.

vLLM is not installed here. The stand-in has what vLLM's own modules of these names define.
"""

import importlib
import sys
import tomllib
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import nwc
from nwc.integrations import vllm_plugin


class QuantizationConfig(ABC):
    def __init__(self):
        self.packed_modules_mapping = {}

    @abstractmethod
    def get_name(self): ...

    @abstractmethod
    def get_supported_act_dtypes(self): ...

    @classmethod
    @abstractmethod
    def get_min_capability(cls): ...

    @staticmethod
    @abstractmethod
    def get_config_filenames(): ...

    @classmethod
    @abstractmethod
    def from_config(cls, config): ...

    @abstractmethod
    def get_quant_method(self, layer, prefix): ...


class BaseModelLoader(ABC):
    def __init__(self, load_config):
        self.load_config = load_config

    @abstractmethod
    def download_model(self, model_config): ...

    @abstractmethod
    def load_weights(self, model, model_config): ...


class LinearBase(nn.Module): ...


class UnquantizedLinearMethod: ...


@pytest.fixture
def registered(monkeypatch):
    """Modules like vLLM's; gives what was registered."""
    found = {}

    def module(name, **contents):
        made = ModuleType(name)
        made.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, made)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, made)

    methods = ["awq"]

    def register_quantization_config(name):
        assert name not in methods

        def wrap(cls):
            assert issubclass(cls, QuantizationConfig)
            methods.append(name)
            found["config"] = cls
            return cls

        return wrap

    def register_model_loader(name):
        def wrap(cls):
            assert issubclass(cls, BaseModelLoader)
            found[name] = cls
            return cls

        return wrap

    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        module(name)
    layers, loaders = "vllm.model_executor.layers", "vllm.model_executor.model_loader"
    module(
        f"{layers}.quantization",
        QUANTIZATION_METHODS=methods,
        register_quantization_config=register_quantization_config,
    )
    module(f"{layers}.quantization.base_config", QuantizationConfig=QuantizationConfig)
    module(
        f"{layers}.linear", LinearBase=LinearBase, UnquantizedLinearMethod=UnquantizedLinearMethod
    )
    module(loaders, register_model_loader=register_model_loader)
    module(f"{loaders}.base_loader", BaseModelLoader=BaseModelLoader)
    vllm_plugin.register()
    vllm_plugin.register()  # in every process, perhaps twice
    return found


class Model(nn.Module):
    """Takes weights as vLLM's models do."""

    def __init__(self, dense, *, drop=None):
        super().__init__()
        self.inner = dense
        self._drop = drop

    def load_weights(self, weights):
        own = dict(self.inner.named_parameters())
        loaded = set()
        for name, value in weights:
            if name == self._drop:
                continue
            own[name].data.copy_(value)
            loaded.add(f"inner.{name}")
        return loaded


def model_config(folder):
    return SimpleNamespace(model=str(folder), revision=None, dtype=torch.bfloat16)


def test_the_entry_point_is_declared():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["vllm.general_plugins"]["nwc"].partition(":")
    assert getattr(importlib.import_module(module), name) is vllm_plugin.register


def test_layers_are_ordinary(registered):
    config = registered["config"].from_config({"quant_method": "nwc", "bits": 4.0})
    assert config.get_name() == "nwc"
    assert torch.bfloat16 in config.get_supported_act_dtypes()
    assert config.get_min_capability() == 0
    assert isinstance(config.get_quant_method(LinearBase(), "x"), UnquantizedLinearMethod)
    assert config.get_quant_method(nn.Embedding(2, 2), "x") is None


def test_the_loader_feeds_decoded_weights(registered, llama_pair):
    expected = AutoModelForCausalLM.from_pretrained(llama_pair.compressed)
    model = Model(AutoModelForCausalLM.from_config(expected.config))
    loader = registered["nwc"](SimpleNamespace(load_format="nwc"))
    loader.download_model(model_config(llama_pair.compressed))
    loader.load_weights(model, model_config(llama_pair.compressed))
    state = expected.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.inner.state_dict().items())


def test_what_is_missing_is_named(registered, llama_pair):
    expected = AutoModelForCausalLM.from_pretrained(llama_pair.compressed)
    loader = registered["nwc"](SimpleNamespace(load_format="nwc"))
    with pytest.raises(nwc.FormatError, match=r"lacks 1 tensors of the model, inner\.model\.norm"):
        loader.load_weights(
            Model(expected, drop="model.norm.weight"), model_config(llama_pair.compressed)
        )
    with pytest.raises(nwc.FormatError, match="not a compressed checkpoint"):
        loader.load_weights(Model(expected), model_config(llama_pair.source))
