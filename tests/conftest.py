"""Tiny models with random weights, made once a session; nothing is downloaded."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

# Without a GPU, Triton interprets its kernels. It asks once, when transformers imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
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
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
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


IMAGE_SIZE, PATCH = 16, 4
COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
}
_PROMPTS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY + 2,
    "max_position_embeddings": 32,
    "pad_token_id": VOCABULARY,
    "bos_token_id": VOCABULARY,
    "eos_token_id": VOCABULARY + 1,
}


def save_image_processor(folder: Path, **changes) -> None:
    """What resizes and normalises images."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | changes))


def save_prompt_tokenizer(folder: Path) -> None:
    """Bytes, an end token after them, and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {"<pad>": 256, "<end>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 257)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    """A classifier of images into three colours, 2 blocks of width 64, BF16."""
    torch.manual_seed(0)
    names = dict(enumerate(COLOURS))
    folder = tmp_path_factory.mktemp("models") / "vit"
    shape = _VISION | {"hidden_size": 64, "intermediate_size": 144}
    model = ViTForImageClassification(ViTConfig(**shape, num_labels=3, id2label=names))
    heavy_tailed_(model).to(torch.bfloat16).save_pretrained(folder)
    save_image_processor(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory) -> Path:
    """An image encoder without a head."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    Dinov2Model(Dinov2Config(**_VISION)).save_pretrained(folder)
    save_image_processor(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """An image and a text encoder trained to agree, or so their form says."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "clip"
    config = CLIPConfig(text_config=_PROMPTS, vision_config=_VISION, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    save_image_processor(folder)
    save_prompt_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def siglip(tmp_path_factory) -> Path:
    """The same with attention pooling and a bias."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "siglip"
    SiglipModel(SiglipConfig(text_config=_PROMPTS, vision_config=_VISION)).save_pretrained(folder)
    save_image_processor(folder)
    save_prompt_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """48 noisy images of three colours in an .npz file, with labels and names."""
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=48)
    colours = np.array(list(COLOURS.values()))[labels]
    noise = generator.integers(-30, 31, size=(48, IMAGE_SIZE, IMAGE_SIZE, 3))
    pixels = (colours[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=pixels, labels=labels, classes=list(COLOURS))
    return path


@pytest.fixture(scope="session")
def halves(images, tmp_path_factory) -> tuple[Path, Path]:
    """The same images in two files: those in even and those in odd places."""
    folder = tmp_path_factory.mktemp("halves")
    with np.load(images) as arrays:
        for start, name in enumerate(("even", "odd")):
            part = {key: arrays[key][start::2] for key in ("images", "labels")}
            np.savez(folder / f"{name}.npz", **part, classes=arrays["classes"])
    return folder / "even.npz", folder / "odd.npz"


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
