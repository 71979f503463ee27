"""Tiny models with random weights, made once a session; nothing is downloaded."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton interprets its kernels. It asks once, when transformers imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "."]
VOCABULARY = 256


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: every text has as many tokens as bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def heavy_tailed_(model: torch.nn.Module) -> torch.nn.Module:
    """Give the matrices what real ones have: heavy tails, and columns of different size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                m, n = parameter.shape
                column = torch.exp(0.5 * torch.randn(1, n, generator=generator))
                normal = torch.randn(m, n, generator=generator)
                tail = torch.exp(0.5 * torch.randn(m, n, generator=generator))
                parameter.copy_(normal * tail * column / n**0.5)
    return model


def _save(model: torch.nn.Module, folder: Path, **options) -> Path:
    heavy_tailed_(model).to(torch.bfloat16).save_pretrained(folder, **options)
    save_tokenizer(folder)
    return folder


def llama_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 144,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**settings | changes)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """Llama, 3 blocks of width 64, grouped-query attention, tied head, BF16."""
    torch.manual_seed(0)
    return _save(LlamaForCausalLM(llama_config()), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory) -> Path:
    """The same in 2 blocks with a head of its own, in several shards with an index."""
    torch.manual_seed(0)
    config = llama_config(tie_word_embeddings=False, num_hidden_layers=2)
    folder = tmp_path_factory.mktemp("models") / "untied"
    _save(LlamaForCausalLM(config), folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    """GPT-2, whose matrices are stored transposed and whose blocks take positional arguments."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    return _save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("models") / "gpt2")


def _trained(model: torch.nn.Module) -> torch.nn.Module:
    """Train for a moment on sequences with a rule, so that routers and experts specialise."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        first = torch.randint(VOCABULARY, (8, 1), generator=generator)
        step = torch.randint(1, 4, (8, 1), generator=generator)
        ids = (first + step * torch.arange(32)) % VOCABULARY
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


_EXPERTS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}
_FAMILIES = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {"num_experts": 4, "moe_intermediate_size": 48, "head_dim": 16, "norm_topk_prob": True},
    ),
    "gpt_oss": (
        GptOssForCausalLM,
        GptOssConfig,
        {"num_local_experts": 4, "head_dim": 16, "sliding_window": 32},
    ),
}


@pytest.fixture(scope="session")
def make_experts(tmp_path_factory):
    """Makes a mixture of experts in 2 blocks of width 64, BF16, as the hub has its family."""

    @functools.cache
    def make(family: str) -> Path:
        torch.manual_seed(0)
        kind, config, settings = _FAMILIES[family]
        folder = tmp_path_factory.mktemp("models") / family
        _trained(kind(config(**_EXPERTS | settings))).to(torch.bfloat16).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return make


@pytest.fixture(scope="session", params=list(_FAMILIES))
def experts(request, make_experts) -> Path:
    """Each family's mixture of experts."""
    return make_experts(request.param)


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    """Safetensors without a config: two matrices and a vector."""
    folder = tmp_path_factory.mktemp("models") / "bare"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(100, 96, generator=generator),
        "decoder.weight": torch.randn(96, 130, generator=generator).half(),
        "decoder.bias": torch.randn(96, generator=generator),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Some 12,000 bytes of prose from a small vocabulary."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(WORDS), (3000,), generator=generator)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(WORDS[i] for i in index))
    return path


@pytest.fixture(scope="session")
def device() -> str:
    """Where Triton's kernels run: the GPU if there is one, else the CPU, interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install .[gpu]")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def change_config():
    """Write changed values into a folder's config.json."""

    def change(folder: Path, **values) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change
