"""`nwc eval`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from nwc.architectures import IMAGES, inputs_of
from nwc.calibration.corpus import token_windows
from nwc.cli.arguments import (
    DTYPES,
    ClassNames,
    CodecFile,
    Images,
    Model,
    OptionalText,
    Prompts,
    ReferenceModel,
    TaskFiles,
    TaskNames,
    usable_device,
)
from nwc.cli.console import Command, err, out, print_json, progress, quiet_transformers
from nwc.cli.evaluate_images import ImageTask
from nwc.compression.source import find_model
from nwc.errors import ConfigError, FormatError
from nwc.evaluation.perplexity import evaluate, strided
from nwc.evaluation.zero_shot import run_tasks
from nwc.formats.checkpoint import is_compressed
from nwc.integrations.images import load_image_model
from nwc.integrations.loading import load_any, load_model, open_checkpoint
from nwc.integrations.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNITS = {
    "tokens": "predicted",
    "kl_divergence": "nats per token",
    "top1_agreement": "of tokens",
    "context": "tokens",
    "stride": "tokens",
}


@dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Perplexity of a model, compressed or not; with --reference also how far it strays.

    With --tasks, accuracy on tasks by lm-evaluation-harness. With --images, of a model of images:
    how often it names the right class, by its own head, by prompts with the names of the classes
    (CLIP, SigLIP), or by a head fitted to its features (DINOv2).

    Example: nwc eval OUT --text heldout.txt --reference MODEL
    """

    model: Model
    """Compressed folder, ordinary model folder, or a hub name."""
    text: OptionalText = None
    """Text file, .jsonl file with "text" fields, or data set NAME[:CONFIG[:SPLIT]]."""
    tasks: TaskNames = None
    """Tasks, with commas between: arc_easy, arc_challenge, piqa, winogrande, hellaswag, boolq,
    openbookqa, mathqa, mmlu, or any other that the harness knows."""
    task_files: TaskFiles = None
    """Folder of local files that hold the tasks, or one file: lines of JSON with question, choices
    and answer. Without it the harness fetches its data from the hub."""
    limit: int = 0
    """Questions of each task, or images, at most; 0 takes all."""
    fewshot: int = 0
    """Examples before each question."""
    images: Images = None
    """Labelled images: an .npz file with arrays images and labels, a folder with one folder for
    each class, or data set NAME[:CONFIG[:SPLIT]]."""
    class_names: ClassNames = None
    """File with the names of the classes, one a line, if the images do not come with them; for
    prompts."""
    prompt: Prompts = ()
    """Prompt of a class, with {} where its name goes; may be given several times. "a photo of a
    {}." unless told otherwise."""
    probe_images: Images = None
    """Labelled images that a head is fitted to, for models without one."""
    probe: Literal["linear", "knn"] = "linear"
    """The head: logistic regression, or the vote of the 20 nearest images."""
    reference: ReferenceModel = None
    """The original model: adds its perplexity, KL divergence and top-1 agreement."""
    context: int = 2048
    """Tokens in a window. The model's own limit, if that is less."""
    stride: int = 0
    """Tokens from one window to the next, of which only the new ones are scored; 0: windows do not
    overlap."""
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
        self._check()
        quiet_transformers()
        folder = find_model(self.model)
        if self.images is not None:
            return self._print(self._classification(folder, self.images))
        model = self._load(folder)
        found: dict[str, Any] = {}
        if self.text is not None:
            found |= self._divergence(model, folder, self.text)
        if self.tasks is not None:
            names = [name.strip() for name in self.tasks.split(",") if name.strip()]
            scores = run_tasks(
                model, folder, names,
                files=self.task_files, limit=self.limit, fewshot=self.fewshot,
            )  # fmt: skip
            found["tasks"] = [dataclasses.asdict(score) for score in scores]
        return self._print(found)

    def _print(self, found: dict[str, Any]) -> int:
        if self.json:
            print_json(found)
        else:
            _show(found)
        return 0

    def _check(self) -> None:
        if self.text is None and self.tasks is None and self.images is None:
            raise ConfigError("nothing to evaluate: give --text or --tasks, or --images")
        if self.images is not None and (self.text is not None or self.tasks is not None):
            raise ConfigError("--images is for models of images, which take no --text or --tasks")
        if self.images is None and (self.class_names or self.prompt or self.probe_images):
            raise ConfigError("--class-names, --prompt and --probe-images want --images")
        if self.class_names is not None and not self.class_names.is_file():
            raise ConfigError(f"--class-names {self.class_names} is not a file")
        if self.context < 2 or self.max_tokens < 0 or not 0 <= self.stride <= self.context:
            raise ConfigError(
                f"--context is {self.context}, --max-tokens {self.max_tokens} and --stride "
                f"{self.stride}, wanted at least 2, at least 0, and 0 to --context"
            )
        if self.tasks is None and (self.task_files or self.fewshot):
            raise ConfigError("--task-files and --fewshot want --tasks")
        if self.tasks is None and self.images is None and self.limit:
            raise ConfigError("--limit wants --tasks, or --images")
        if self.limit < 0 or self.fewshot < 0:
            raise ConfigError(
                f"--limit is {self.limit} and --fewshot {self.fewshot}, wanted at least 0"
            )
        if self.task_files is not None and not self.task_files.exists():
            raise ConfigError(f"--task-files {self.task_files} does not exist")

    def _classification(self, folder: Path, images: str) -> dict[str, Any]:
        """How often the right class is named, and distance from the reference if there is one."""
        dtype, device = DTYPES[self.dtype], usable_device(self.device)
        model = load_image_model(folder, dtype, device, self.codec)
        reference = None
        if self.reference is not None:
            reference = load_image_model(find_model(self.reference), dtype, device, self.codec)
        task = ImageTask(
            source=images, folder=folder, limit=self.limit, class_names=self.class_names,
            templates=self.prompt, probe_images=self.probe_images, probe=self.probe,
        )  # fmt: skip
        return task.run(model, reference)

    def _divergence(self, model: PreTrainedModel, folder: Path, text: str) -> dict[str, Any]:
        """Perplexity, and distance from the reference if there is one."""
        reference = None if self.reference is None else self._load(find_model(self.reference))
        limit = getattr(model.config, "max_position_embeddings", None) or self.context
        context = min(self.context, limit)
        if context < self.context:
            err.print(f"note: the model takes {limit} tokens, so windows have {context}")
        windows = token_windows(
            text, tokenizer_of(folder), tokens=self.max_tokens, context=context
        )
        scored = None
        if self.stride:
            windows, scored = strided(windows, min(self.stride, context))
        with progress("evaluating", len(windows)) as advance:
            result = evaluate(model, windows, reference, scored=scored, on_batch=advance)
        found = {k: v for k, v in dataclasses.asdict(result).items() if v is not None}
        return found | {"context": context} | ({"stride": self.stride} if self.stride else {})

    def _load(self, folder: Path) -> PreTrainedModel:
        device = usable_device(self.device)
        dtype = DTYPES[self.dtype]
        if is_compressed(folder):
            keys = open_checkpoint(folder, self.codec).keys()
            with progress("loading", len(keys)) as advance:
                model = load_model(folder, dtype, device, self.codec, lambda key: advance(1, key))
            if IMAGES in inputs_of(model):
                raise FormatError(
                    f"{folder} is a {type(model).__name__}, which takes images: give --images"
                )
            return model
        try:
            return load_any(folder, dtype, device)
        except FormatError as error:
            raise FormatError(f"{error} (models of images take --images)") from error


def _show(found: dict[str, Any]) -> None:
    scores = found.pop("tasks", [])
    for name, value in found.items():
        shown = f"{value:.6g}" if isinstance(value, float) else f"{value}"
        shown = f"{value:,}" if isinstance(value, int) else shown
        unit = "" if "classifier" in found else _UNITS.get(name, "")
        out.print(f"{name.replace('_', ' '):22} {shown} {unit}".rstrip(), markup=False)
    if scores:
        table = Table("task", "metric", "value", "std. error", "questions", box=None)
        for score in scores:
            spread = "-" if score["stderr"] is None else f"{score['stderr']:.4f}"
            value = f"{score['value']:.4f}"
            questions = f"{score['questions']:,}"
            table.add_row(score["task"], score["metric"], value, spread, questions)
        out.print(table)
