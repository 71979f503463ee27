"""`nwc eval`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nwc.calibration.corpus import token_windows
from nwc.cli.arguments import DTYPES, CodecFile, Model, ReferenceModel, Text, usable_device
from nwc.cli.console import Command, err, out, print_json, progress, quiet_transformers
from nwc.compression.source import find_model
from nwc.errors import ConfigError, FormatError
from nwc.evaluation.perplexity import evaluate
from nwc.formats.checkpoint import is_compressed
from nwc.integrations.loading import load_model
from nwc.integrations.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNITS = {
    "tokens": "predicted",
    "kl_divergence": "nats per token",
    "top1_agreement": "of tokens",
    "context": "tokens",
}


@dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Perplexity of a model, compressed or not; with --reference also how far it strays.

    Example: nwc eval OUT --text heldout.txt --reference MODEL
    """

    model: Model
    """Compressed folder, ordinary model folder, or a hub name."""
    text: Text
    """Text file, .jsonl file with "text" fields, or data set NAME[:CONFIG[:SPLIT]]."""
    reference: ReferenceModel = None
    """The original model: adds its perplexity, KL divergence and top-1 agreement."""
    context: int = 2048
    """Tokens in a window; windows do not overlap. The model's own limit, if that is less."""
    max_tokens: int = 0
    """Tokens to evaluate at most; 0 takes the whole text."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and arithmetic. 16 bits add noise of their own to small divergences."""
    device: str = "auto"
    """Where to run: cpu, cuda, or auto."""
    codec: CodecFile = None
    """Codec file, for a folder that only refers to one that is not shipped."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """See the class."""
        if self.context < 2 or self.max_tokens < 0:
            raise ConfigError(
                f"--context is {self.context} and --max-tokens {self.max_tokens}, wanted at "
                "least 2 and 0"
            )
        quiet_transformers()
        folder = find_model(self.model)
        model = self._load(folder)
        reference = None if self.reference is None else self._load(find_model(self.reference))
        limit = getattr(model.config, "max_position_embeddings", None) or self.context
        context = min(self.context, limit)
        if context < self.context:
            err.print(f"note: the model takes {limit} tokens, so windows have {context}")
        windows = token_windows(
            self.text, tokenizer_of(folder), tokens=self.max_tokens, context=context
        )
        with progress("evaluating", len(windows)) as advance:
            result = evaluate(model, windows, reference, on_batch=advance)
        found = {k: v for k, v in dataclasses.asdict(result).items() if v is not None}
        found["context"] = context
        if self.json:
            print_json(found)
        else:
            for name, value in found.items():
                shown = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
                unit = _UNITS.get(name, "")
                out.print(f"{name.replace('_', ' '):22} {shown} {unit}".rstrip(), markup=False)
        return 0

    def _load(self, folder: Path) -> PreTrainedModel:
        device = usable_device(self.device)
        dtype = DTYPES[self.dtype]
        if is_compressed(folder):
            return load_model(folder, dtype, device, self.codec)
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        except (ValueError, OSError, KeyError) as error:
            raise FormatError(
                f"{folder} is not a causal language model: {str(error).splitlines()[0]}"
            ) from error
        return model.to(device).eval()
