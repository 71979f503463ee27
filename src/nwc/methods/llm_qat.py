r"""LLM-QAT: quantisation-aware training on text that the model writes itself.

Liu, Oguz, Zhao, Chang, Stock, Mehdad, Shi, Krishnamoorthi, Chandra, 2023 (arXiv:2305.17888). A
random token is continued by the model, the first three to five tokens greedily, the rest drawn
from its distribution (Sec. 2.1). Weights are rounded symmetrically, the range of a row being that
of its largest weight (Eq. 2; FP16 scales),

.. math:: \hat w = s \lfloor w / s \rceil, \quad s = \max |w| / (2^{b - 1} - 1)

and trained straight through against the model's own distribution (Eq. 4, cross-entropy to soft
labels, which is the KL divergence plus a constant).

The paper quantises activations and the key-value cache as well; here only weights are. It moves
all parameters, here the matrices (see `qat`). It writes 100 K texts of 2,048 tokens and trains on
them once with 2e-5; here 64 texts of at most 256 tokens are read 64 times a 1,024 tokens, with a
rate relative to the size of the weights: a few minutes on a core for 8 M parameters. End of text
does not end a sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from nwc.coding.rate import BitBudget
from nwc.methods.base import LayerWeight
from nwc.methods.dense import DenseMethod, Prepared, Quantised, Setting, grouped_budget
from nwc.methods.qat import Schedule, forward_kl, train_rounded

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_COLUMNS = 4096
"""Of a large matrix."""
_GREEDY = (3, 6)
"""Tokens after which sampling begins, the first one included: three to five."""


class LLMQAT(DenseMethod):
    """See the module; without a model of transformers (`prepare`) it only rounds."""

    name = "llm_qat"
    settings: ClassVar = {
        b + 16 / _COLUMNS: Setting(f"{b} bits, a scale for every row", b) for b in range(3, 9)
    }
    schedule: ClassVar = Schedule()
    samples: ClassVar[int] = 64
    """Texts that the model writes."""
    context: ClassVar[int] = 256
    """Tokens of each at most."""

    def prepare(
        self,
        model: nn.Module,
        windows: Tensor | None,
        on_progress: Callable[[float, str], None] = lambda share, note: None,
    ) -> Prepared | None:
        """Train the model on what it writes; the calibration text plays no part."""
        on_progress(0.0, "the model writes its text")
        config: Any = model.config
        length = min(self.context, getattr(config, "max_position_embeddings", None) or 2048)
        text = write(model, self.samples, length, self.seed)
        bits = self.setting.bits
        latent = train_rounded(
            model,
            copy.deepcopy(model),
            self.matrices,
            lambda W: round_rows(W, bits),
            forward_kl,
            text,
            self.schedule,
            seed=self.seed,
            on_progress=on_progress,
        )
        return Prepared(latent, {})

    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """See `DenseMethod.quantise`; H plays no part."""
        bits = self.setting.bits
        return [Quantised(round_rows(x.W, bits), _budget(x.W, bits)) for x in layers]


def _budget(W: Tensor, bits: int) -> BitBudget:
    m, n = W.shape
    return grouped_budget(m, n, bits, group=n)


def round_rows(W: Float[Tensor, "m n"], bits: int) -> Float[Tensor, "m n"]:
    """Every row on the symmetric grid that spans it.

    Example:
        >>> round_rows(torch.tensor([[-3.0, 0.9, 1.6]]), 3)
        tensor([[-3.,  1.,  2.]])
    """
    last = 2 ** (bits - 1) - 1
    scale = (W.abs().amax(1, keepdim=True) / last).half().float()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (W / scale).round().clamp(-last, last) * scale


@torch.no_grad()
def write(model: nn.Module, count: int, length: int, seed: int) -> Int[Tensor, "count length"]:
    """Text that a causal language model writes.

    Args:
        model: of transformers.
        count: texts, written side by side.
        length: tokens of each.
        seed: of first tokens and of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    text = torch.randint(len(embeddings.weight), (count, 1), generator=generator)
    begin = torch.randint(*_GREEDY, (count,), generator=generator)
    past = None
    while text.shape[1] < length:
        output = model(input_ids=text[:, -1:], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits = output.logits[:, -1].float()
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        token = torch.where(text.shape[1] < begin, logits.argmax(-1), drawn)
        text = torch.cat([text, token[:, None]], dim=1)
    return text
