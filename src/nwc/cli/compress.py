"""`nwc compress`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nwc.cli.arguments import Bits, Calibration, CodecFile, Folder, Model, Patterns, Tokens
from nwc.cli.console import Command, err, out, print_json, quiet_transformers, timed_bar
from nwc.cli.dense_result import write_dense_result
from nwc.cli.plan_table import show_plan
from nwc.cli.preparation import Preparation, prepare, work_path
from nwc.cli.report import check_page, draw_page, page_of
from nwc.cli.result import is_published, write_result
from nwc.compression.executor import Executor, Inline, Job, Processes, RayCluster, threads
from nwc.compression.pipeline import compress_model
from nwc.compression.plan import Plan
from nwc.compression.preflight import preflight
from nwc.compression.source import find_model
from nwc.compression.state import WorkFolder
from nwc.compression.unit import UnitCompressor
from nwc.errors import ConfigError
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.writer import check_output
from nwc.methods.dense import DenseMethod
from nwc.methods.neural import Decisions
from nwc.methods.registry import DENSE, MethodName

MIN_BITS, MAX_BITS = 2.0, 7.0
_OFF = 0.01
"""Share of the rate asked for by which it may be missed without a word."""
DEFAULT_BITS = 4.5


@dataclass(frozen=True, kw_only=True)
class Compress(Command):
    """Compress a model to a small, verified folder.

    Example: nwc compress MODEL --output OUT --bits 4.5 --calibration text.txt
    """

    model: Model
    """Folder of safetensors, or a hub name."""
    output: Folder
    """Folder to make."""
    bits: Bits = None
    """Bits per parameter over the compressed tensors, every overhead counted; 2 to 7, 4.5 unless
    told otherwise."""
    file_bits: Bits = None
    """Instead: bits per parameter of the whole folder, kept tensors and all."""
    method: MethodName = "nwc"
    """nwc: the learned codec; ecsq: entropy-coded uniform scalar quantisation; watersic, entquant:
    other ways to set its steps. The others are rivals without a file format: they make dense
    weights and count the bits of their codes."""
    preset: Literal["default", "light", "paper"] = "default"
    """Codec of method nwc: one small codec for every rate, one without any transform, or the
    paper's six networks."""
    calibration: Calibration = None
    """Text file, .jsonl file with "text" fields, or data set NAME[:CONFIG[:SPLIT]]. For models of
    images: an .npz file with an array images, a folder of images, or a data set with images."""
    data_free: bool = False
    """Compress without calibration; so it is, too, if neither is given."""
    calibration_tokens: int = 131_072
    """Tokens to calibrate with, at most; patches, for images."""
    context: Tokens = None
    """Tokens in a calibration window; default: the model's, at most 2048."""
    no_recovery: bool = False
    """Leave out the fine-tuning of blocks, which calibration text otherwise brings."""
    recovery: bool = False
    """Fine-tune also the models that are better without by default (GPT-OSS)."""
    recovery_steps: int = 64
    """Fine-tuning steps after every group of layers."""
    features: Literal["auto", "original", "compressed"] = "auto"
    """Inputs of a block: the original model's, or those that the compressed blocks before it give,
    for which it must wait. auto: compressed with fine-tuning, original without."""
    waterfill: Literal["columns", "layers", "rows"] = "rows"
    """With calibration text, steps follow how much a weight matters: over the columns of a matrix,
    over layers as well, over rows as well. The last two look at gradients first."""
    survey_tokens: int = 32_768
    """Tokens, or patches, whose gradients are looked at."""
    trellis: Literal[0, 4, 8, 32] = 8
    """States of the trellis that quantises; 0 rounds every weight by itself."""
    rate_weight: float = 0.025
    """Price of a bit, in squared steps, when it is decided what a weight is coded as."""
    sweeps: int = 0
    """How often every column is decided again once the errors of all are known."""
    distill_tokens: int = 0
    """Tokens of the calibration text on which norms and biases are tuned end to end at the end,
    towards the original's predictions. Holds both models in memory; 0 leaves it out."""
    keep: Patterns = ()
    """Pattern (* and ?) of tensors to leave as they are; may be given several times."""
    profile: Literal["balanced", "archive", "latency"] = "balanced"
    """Weights in an independently decodable tile: 64 K, 256 K or 16 K."""
    codec: CodecFile = None
    """Codec file to use instead of a shipped one."""
    codec_by_reference: bool = False
    """Leave the synthesis transform out of the files; readers need the same codec."""
    seed: int = 0
    """Seed of everything random: the order of text in fine-tuning."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or auto."""
    workers: int = 1
    """Blocks that are compressed at once, each by a process of its own."""
    threads: int = 0
    """Threads of each worker; 0 takes a quarter of the cores. More than --workers, part of what
    decides the bytes."""
    ray: str | None = None
    """Address of a Ray cluster to compress on, instead of --workers."""
    restart: bool = False
    """Begin anew instead of going on with an interrupted run."""
    dry_run: bool = False
    """Print what would be done, and what it takes, and stop."""
    overwrite: bool = False
    """Replace an existing output."""
    json: bool = False
    """Print the result as JSON."""

    @property
    def tensor_bits(self) -> float | None:
        """Bits per parameter over the compressed tensors; None if --file-bits decides."""
        if self.file_bits is not None:
            return None
        return DEFAULT_BITS if self.bits is None else self.bits

    @property
    def decisions(self) -> Decisions:
        """How weights are quantised."""
        return Decisions(trellis=self.trellis, rate_weight=self.rate_weight, sweeps=self.sweeps)

    @property
    def thread_count(self) -> int:
        """Threads of a worker."""
        return self.threads or max(1, (os.cpu_count() or 1) // 4)

    def run(self) -> int:
        """See the class."""
        quiet_transformers()
        preparation = self.make()
        if preparation is not None:
            self._summary(preparation)
        return 0

    def make(self) -> Preparation | None:
        """Make the output and return what it was made from; None if that was not asked for.

        Raises:
            NWCError: it cannot be made.
        """
        self._check()
        folder = find_model(self.model)
        # A run that was killed when all but the cleaning up was done may replace its own result.
        replace = self.overwrite or is_published(work_path(self.output), self.output)
        check_output(self.output, folder, overwrite=replace)
        check_page(page_of(self.output), overwrite=replace)
        with threads(self.thread_count):
            preparation = prepare(self, folder)
            if self.dry_run:
                show_plan(preparation, as_json=self.json)
                return None
            if preparation.open_work(restart=self.restart):
                err.print(f"note: going on with {preparation.work.path}", markup=False)
            work, done, refused = preparation.work, False, False
            try:
                try:
                    preparation.change_model()
                    preparation.find_gain()
                except ConfigError:
                    refused = True  # other options will do, and shall not find this run in the way
                    raise
                warnings = self._compress(preparation, replace=replace)
                draw_page(self.output, page_of(self.output))
                done = True
            except (KeyboardInterrupt, SystemExit):
                if not work.is_empty:
                    err.print(
                        f"note: what is finished lies in {work.path}; the same command goes on "
                        "from there, with --restart it begins anew",
                        markup=False,
                    )
                raise
            finally:
                work.close(remove=done or refused or work.is_empty)
        for warning in warnings:
            err.print(f"warning: {warning}", markup=False)
        return preparation

    def _compress(self, preparation: Preparation, *, replace: bool) -> list[str]:
        """Do what is left to do and put the output in place; returns warnings."""
        plan, work, job = preparation.plan, preparation.work, preparation.job
        compressor = job.compressor(preparation.source, plan)
        finished = FinishedWeights(plan, work)
        forecast = preflight(plan, preparation.source, job, preparation.windows)
        first = sum(t.parameters for t in plan.units[0]) / plan.parameters
        with timed_bar("compressing", plan.parameters, forecast.seconds, first) as show:

            def on_progress(note: str) -> None:
                show(finished(), note)

            with self._executor(job, compressor, on_progress) as executor:
                units = list(
                    compress_model(
                        plan, work, executor,
                        stream=compressor.stream, drifted=job.drifted, on_progress=on_progress,
                    )
                )  # fmt: skip
        write = write_dense_result if isinstance(job.method, DenseMethod) else write_result
        return write(preparation, units, replace=replace)

    @contextmanager
    def _executor(
        self, job: Job, compressor: UnitCompressor, on_progress: Callable[[str], None]
    ) -> Iterator[Executor]:
        executor: Executor
        if self.ray is not None:
            executor = RayCluster(job, self.ray)
        elif self.workers > 1:
            executor = Processes(job, self.workers)
        else:
            executor = Inline(compressor, on_progress)
        try:
            yield executor
        finally:
            executor.close()

    def _check(self) -> None:
        if self.bits is not None and self.file_bits is not None:
            raise ConfigError("--bits and --file-bits exclude each other; drop one")
        steered = self.method not in DENSE  # the others know their own settings
        if steered and self.bits is not None and not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(f"--bits is {self.bits}, wanted {MIN_BITS:g} to {MAX_BITS:g}")
        if self.data_free and self.calibration:
            raise ConfigError("--data-free and --calibration exclude each other; drop one")
        if self.recovery and (self.no_recovery or not self.calibration):
            raise ConfigError("--recovery wants --calibration, and no --no-recovery beside it")
        if self.features == "compressed" and not self.calibration:
            raise ConfigError("--features compressed wants --calibration")
        if self.calibration_tokens < 1 or (self.context is not None and self.context < 2):
            raise ConfigError(
                f"--calibration-tokens is {self.calibration_tokens} and --context {self.context}, "
                "wanted at least 1 and 2"
            )
        if self.survey_tokens < 1 or self.distill_tokens < 0:
            raise ConfigError(
                f"--survey-tokens is {self.survey_tokens} and --distill-tokens "
                f"{self.distill_tokens}, wanted at least 1 and 0"
            )
        if self.distill_tokens and not self.calibration:
            raise ConfigError("--distill-tokens wants --calibration")
        if self.workers < 1 or self.threads < 0 or self.recovery_steps < 1:
            raise ConfigError(
                f"--workers is {self.workers}, --threads {self.threads}, --recovery-steps "
                f"{self.recovery_steps}; wanted at least 1, 0 and 1"
            )
        if self.ray is not None and self.workers > 1:
            raise ConfigError("--ray and --workers exclude each other; drop one")
        if not (self.calibration or self.data_free):
            err.print("note: compressing data-free; --calibration TEXT gives better quality")

    def _summary(self, preparation: Preparation) -> None:
        from nwc.cli.inspect import inspect_folder  # noqa: PLC0415  (a verb beside this one)

        found = inspect_folder(self.output, self.codec)
        bits = found["bits_per_parameter"]
        met = bits["tensors" if self.file_bits is None else "file"]
        if self.method not in DENSE and abs(met / preparation.asked - 1) > _OFF:
            err.print(
                f"note: asked for {preparation.asked:g} bits per parameter, met {met:.3f}: the "
                "last matrices cannot make up for the others; ask for another rate"
            )
        if self.json:
            print_json({"output": str(self.output), **found})
            return
        out.print(
            f"{self.output}: {bits['tensors']:.3f} bits per parameter over "
            f"{preparation.plan.parameters:,} compressed weights, {bits['file']:.3f} over the "
            f"whole folder ({found['file_bytes']:,} bytes), hash {found['hash']}\n"
            f"{page_of(self.output)}: the report",
            markup=False,
        )


def compress_folder(
    model: str | Path,
    output: str | Path,
    **options: Any,  # noqa: ANN401  (flags of the command)
) -> Checkpoint:
    """The command as a function; see `nwc.compress`."""
    flags = {field.name for field in dataclasses.fields(Compress)} - {"json", "dry_run", "debug"}
    unknown = sorted(set(options) - flags)
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is not an option of nwc.compress; there are {', '.join(sorted(flags))}"
        )
    if options.get("method") in DENSE:
        raise ConfigError(
            f"method {options['method']} makes dense weights, no compressed checkpoint; use the "
            "command nwc compress"
        )
    if isinstance(options.get("keep"), str):
        options["keep"] = (options["keep"],)
    for name in ("bits", "file_bits"):
        if isinstance(options.get(name), int):  # the file says 4.0 for both
            options[name] = float(options[name])
    command = Compress(model=str(model), output=Path(output), **options)
    command.make()
    return Checkpoint(command.output, command.codec)


class FinishedWeights:
    """Counts what is on disk, looking at every file once.

    Args:
        plan: what is compressed.
        work: the run's state.
    """

    def __init__(self, plan: Plan, work: WorkFolder) -> None:
        self._units = [{t.name: t.parameters for t in unit} for unit in plan.units]
        self._work = work
        self._seen: dict[str, int] = {}
        self._first = 0

    def __call__(self) -> int:
        """Weights that are compressed."""
        for unit in range(self._first, len(self._units)):
            complete = self._work.is_finished(unit)
            for name in self._work.group_files(unit):
                if name not in self._seen:
                    facts = self._work.read_facts(name)
                    assert facts is not None
                    self._seen[name] = sum(self._units[unit][key] for key in facts["tensors"])
            if complete and unit == self._first:
                self._first += 1
        return sum(self._seen.values())
