"""What experiments run on: models and texts, at three scales.

- `tiny`: models of some 100,000 random weights made on the spot; shows that everything runs.
- `small`: the models and texts of a data folder (`--data`), 0.2 to 8 M parameters.
- `full`: the paper's own models and texts by their hub names; for machines with GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from nwc.cli.trials import Judge
from nwc.errors import ConfigError

Scale = Literal["tiny", "small", "full"]

EXAMPLES = Path(__file__).parent.parent / "examples"

REDPAJAMA = "togethercomputer/RedPajama-Data-1T-Sample"
"""The paper's calibration text (App. A.2)."""

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"
C4 = "allenai/c4:en:validation"
COMMON_SENSE = ("arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "boolq")
"""The six tasks of Sec. 4.1."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, what it is calibrated with, and what it is judged by.

    Args:
        name: as rows and figures have it.
        source: folder or hub name of the model, or what makes one and says where.
        calibration: text.
        texts: held-out texts; the first is the model's own kind, the second another.
        context: tokens in a window.
        calibration_tokens: at most.
        max_tokens: of each held-out text; 0 takes all.
        tasks: that are put to it.
        limit: questions of each task; 0 takes all.
        task_files: folder of local tasks.
    """

    name: str
    source: str | Callable[[], str]
    calibration: str
    texts: tuple[str, ...]
    context: int = 2048
    calibration_tokens: int = 131_072
    max_tokens: int = 0
    tasks: tuple[str, ...] = ()
    limit: int = 0
    task_files: Path | None = None

    @property
    def model(self) -> str:
        """Folder or hub name."""
        return self.source if isinstance(self.source, str) else self.source()

    @property
    def judge(self) -> Judge:
        """What results are judged by."""
        return Judge(
            model=self.model, texts=self.texts, context=self.context, max_tokens=self.max_tokens,
            tasks=self.tasks, task_files=self.task_files, limit=self.limit,
        )  # fmt: skip


@dataclass(frozen=True)
class World:
    """Subjects of a scale.

    Args:
        scale: which.
        data: folder of models and texts, for `small`.
        scratch: folder for what is made on the spot.
    """

    scale: Scale
    data: Path | None
    scratch: Path

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """By name."""
        found = {"tiny": self._tiny, "small": self._small, "full": self._full}[self.scale]()
        return {subject.name: subject for subject in found}

    def pick(self, *, tiny: str, small: str, full: str) -> str:
        """One of three, by scale."""
        return {"tiny": tiny, "small": small, "full": full}[self.scale]

    def _tiny(self) -> list[Subject]:
        text = str(EXAMPLES / "books-heldout.txt")
        common = {
            "calibration": str(EXAMPLES / "books-calibration.txt"),
            "texts": (text, str(EXAMPLES / "README.md")),
            "context": 64,
            "calibration_tokens": 1024,
            "max_tokens": 256,
        }
        return [
            Subject(name="llama", source=partial(made, "llama", self.scratch), **common),
            Subject(name="gpt2", source=partial(made, "gpt2", self.scratch), **common),
            Subject(name="mixtral", source=partial(made, "mixtral", self.scratch), **common),
        ]

    def _small(self) -> list[Subject]:
        if self.data is None:
            raise ConfigError("scale small wants --data: a folder with models and text")
        text, models = self.data / "text", self.data / "models"
        plays = text / "tinyshakespeare.txt"
        stories = {
            "calibration": str(text / "tinystories_2mb.txt"),
            "texts": (str(text / "tinystories_heldout100.txt"), str(text / "cal_c4.txt")),
            "context": 256,
            "max_tokens": 30_000,
        }
        return [
            Subject(
                name="stories15M-adapted", source=str(models / "stories15M-adapted"), **stories
            ),
            Subject(name="stories260K", source=str(models / "stories260K"), **stories),
            Subject(
                name="books-llama", source=str(models / "books-llama"),
                calibration=str(EXAMPLES / "books-calibration.txt"),
                texts=(str(EXAMPLES / "books-heldout.txt"), str(text / "cal_c4.txt")),
                context=256, max_tokens=30_000,
            ),
            Subject(
                name="babygpt-shakespeare-char", source=str(models / "babygpt-shakespeare-char"),
                calibration=str(plays),
                texts=(str(self._end_of(plays)),),
                context=64, max_tokens=30_000,
            ),
            Subject(
                name="mixtral-made",
                source=partial(made, "mixtral", self.scratch, steps=400, text=plays),
                calibration=str(plays),
                texts=(str(self._end_of(plays)),),
                context=64, max_tokens=30_000,
            ),
        ]  # fmt: skip

    def _end_of(self, text: Path) -> Path:
        """The last tenth of a text, which calibration does not reach."""
        path = self.scratch / f"{text.stem}_end.txt"
        whole = text.read_text(encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole[-len(whole) // 10 :], encoding="utf-8")
        return path

    def _full(self) -> list[Subject]:
        dense = {
            "calibration": REDPAJAMA,
            "texts": (WIKITEXT, C4),
            "calibration_tokens": 6144 * 2048,
            "max_tokens": 0,
            "tasks": (*COMMON_SENSE, "mmlu"),
        }
        experts = dense | {"calibration_tokens": 2048 * 2048}
        names = {
            "Llama 3-8B": ("meta-llama/Meta-Llama-3-8B", dense),
            "Llama 2-7B": ("meta-llama/Llama-2-7b-hf", dense),
            "Llama 2-13B": ("meta-llama/Llama-2-13b-hf", dense),
            "Mixtral-8x7B": ("mistralai/Mixtral-8x7B-v0.1", experts),
            "Qwen3-30B-A3B": ("Qwen/Qwen3-30B-A3B", experts),
            "GPT-OSS-20B": ("openai/gpt-oss-20b", experts),
        }
        return [Subject(name=k, source=hub, **common) for k, (hub, common) in names.items()]


VOCABULARY = 256


def made(kind: str, scratch: Path, *, steps: int = 0, text: Path | None = None) -> str:
    """A model with byte tokens made on the spot, and kept: its folder.

    Args:
        kind: llama, gpt2 or mixtral.
        scratch: where it is made.
        steps: of training; without, its weights are random with heavy tails.
        text: file that it is trained on, but for the last tenth.
    """
    from transformers import (  # noqa: PLC0415  (slow to import)
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
    )

    folder = scratch / "models" / (f"{kind}-{steps}" if steps else kind)
    if (folder / "config.json").exists():
        return str(folder)
    size = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=144))
    elif kind == "mixtral":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
        model = MixtralForCausalLM(MixtralConfig(**size, **experts))
    else:
        shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape))
    if steps:
        assert text is not None
        _train(model, text, steps)
    else:
        _heavy_tails(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    _byte_tokenizer(folder)
    return str(folder)


def _heavy_tails(model: nn.Module) -> None:
    """What real matrices have: heavy tails, and columns of different size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                m, n = parameter.shape
                column = torch.exp(0.5 * torch.randn(1, n, generator=generator))
                tail = torch.exp(0.5 * torch.randn(m, n, generator=generator))
                normal = torch.randn(m, n, generator=generator)
                parameter.copy_(normal * tail * column / n**0.5)


def _train(model: nn.Module, text: Path, steps: int) -> None:
    ids = torch.tensor(list(text.read_bytes()))
    ids = ids[: -len(ids) // 10]
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        start = torch.randint(len(ids) - 64, (16,), generator=generator)
        batch = torch.stack([ids[i : i + 64] for i in start.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _byte_tokenizer(folder: Path) -> None:
    """Token i is byte i, as in training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    # ByteLevel writes printable bytes as themselves and the others as the letters from 256 on.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    others = (byte for byte in range(VOCABULARY) if chr(byte) not in alphabet)
    bytes_of = {chr(VOCABULARY + i): byte for i, byte in enumerate(others)}
    vocabulary = {letter: bytes_of.get(letter, ord(letter) % VOCABULARY) for letter in alphabet}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
