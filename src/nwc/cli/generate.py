"""`nwc run`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from nwc.cli.arguments import DTYPES, CodecFile, Model, usable_device
from nwc.cli.console import Command, err, quiet_transformers
from nwc.compression.source import find_model
from nwc.errors import ConfigError
from nwc.integrations.loading import load_any, weight_bytes
from nwc.integrations.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = Annotated[str, tyro.conf.arg(metavar="TEXT")]


@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Generate text with a model, compressed or not.

    The text goes to standard output as it is made; speed and memory follow on standard error.

    Example: nwc run OUT --prompt "Once upon a time" --mode packed
    """

    model: Model
    """Compressed folder, ordinary model folder, or a hub name."""
    prompt: Prompt
    """What the text begins with; it is not repeated."""
    mode: Literal["dense", "packed"] = "dense"
    """Of a compressed folder. dense: decode all weights while loading; packed: keep them
    compressed in memory and decode each when it is used."""
    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 0.0
    """0 takes the likeliest token every time; above, tokens are drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of what is drawn."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and arithmetic; auto: what the model was stored in."""
    device: str = "auto"
    """Where to run: cpu, cuda, or auto."""
    codec: CodecFile = None
    """Codec file, for a folder that only refers to one that is not shipped."""

    def run(self) -> int:
        """See the class."""
        self._check()
        quiet_transformers()
        folder = find_model(self.model)
        device = usable_device(self.device)
        tokenizer = load_tokenizer(folder)
        dtype: torch.dtype | Literal["auto"]
        dtype = "auto" if self.dtype == "auto" else DTYPES[self.dtype]
        start = time.perf_counter()
        model = load_any(folder, dtype, device, mode=self.mode, codec=self.codec)
        loading = time.perf_counter() - start
        ids = tokenizer(self.prompt, return_tensors="pt").input_ids.to(model.device)
        limit = getattr(model.config, "max_position_embeddings", None)
        if ids.shape[1] == 0:
            raise ConfigError("--prompt has no tokens; begin the text")
        if limit is not None and ids.shape[1] >= limit:
            raise ConfigError(
                f"--prompt has {ids.shape[1]} tokens, the model takes {limit} with those that it "
                "adds; shorten it"
            )
        streamer, times = _streamer(tokenizer)
        count = self._generate(model, tokenizer, ids, streamer, limit)
        sys.stdout.write("\n")
        self._report(model, loading, count, times)
        return 0

    def _check(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"--max-new-tokens is {self.max_new_tokens}, --temperature {self.temperature} and "
                f"--top-p {self.top_p}; wanted at least 1, at least 0, and above 0 to 1"
            )

    def _generate(
        self,
        model: PreTrainedModel,
        tokenizer: Any,  # noqa: ANN401
        ids: torch.Tensor,
        streamer: Any,  # noqa: ANN401
        limit: int | None,
    ) -> int:
        """Generate; returns how many tokens came."""
        new = (
            self.max_new_tokens
            if limit is None
            else min(self.max_new_tokens, limit - ids.shape[1])
        )
        drawn: dict[str, Any] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if self.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": 0,
            }
        stop = model.generation_config.eos_token_id
        pad = tokenizer.pad_token_id
        if pad is None and stop is not None:
            pad = stop[0] if isinstance(stop, list) else stop
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                pad_token_id=pad,
                streamer=streamer,
                **drawn,
            )
        return made.shape[1] - ids.shape[1]

    def _report(
        self, model: PreTrainedModel, loading: float, count: int, times: list[float]
    ) -> None:
        first = times[1] - times[0]
        rest = times[-1] - times[1]
        speed = f", then {(count - 1) / rest:.1f} tokens/s" if count > 1 and rest > 0 else ""
        used, most = weight_bytes(model), _peak()
        peak = "" if most is None else f", peak memory of the process {most / 1e6:,.0f} MB"
        parts = f"{used.dense / 1e6:,.1f} MB"
        if used.packed:
            parts = (
                f"{(used.dense + used.packed) / 1e6:,.1f} MB ({used.packed / 1e6:,.1f} MB packed)"
            )
        err.print(
            f"{count} tokens: the first after {first:.2f} s{speed}; loaded in {loading:.1f} s\n"
            f"weights {parts}{peak}",
            markup=False,
        )


def _streamer(tokenizer: Any) -> tuple[Any, list[float]]:  # noqa: ANN401
    """What prints text as it comes, and when each token came, the prompt first."""
    from transformers import TextStreamer

    times: list[float] = []

    class Streamer(TextStreamer):
        def put(self, value: torch.Tensor) -> None:
            times.append(time.perf_counter())
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True), times


def _peak() -> int | None:
    """Bytes of memory that this process had at most, where the system tells."""
    try:
        import resource  # noqa: PLC0415  (not on Windows)
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
