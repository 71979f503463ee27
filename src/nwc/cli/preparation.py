"""What `nwc compress` finds out before it begins: plan, method, text, target, fingerprint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

import nwc
from nwc.cli.arguments import usable_device
from nwc.cli.calibration_input import calibration_windows
from nwc.cli.console import err, progress
from nwc.cli.prepared_model import changed_model
from nwc.codec.model import WeightCodec
from nwc.coding.tiling import PROFILES
from nwc.compression.distillation import DistillationConfig, distil
from nwc.compression.executor import CALIBRATION_FILE, RATE_FILE, Job
from nwc.compression.pipeline import CompressedUnit
from nwc.compression.plan import Plan, make_plan, require_skeleton
from nwc.compression.rate_control import RateController
from nwc.compression.recovery import RecoveryConfig, fast_bf16
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import WorkFolder
from nwc.compression.stream import BlockStream
from nwc.compression.survey import Sensitivity, Survey, read_survey
from nwc.errors import ConfigError
from nwc.formats.codec_file import load_codec
from nwc.formats.kept import KeptDigest
from nwc.formats.shipped import shipped_codec
from nwc.formats.writer import (
    checkpoint_facts,
    codec_bytes,
    codec_facts,
    guard_bytes,
    small_files,
)
from nwc.methods.base import LayerMethod
from nwc.methods.dense import DenseMethod
from nwc.methods.neural import Neural
from nwc.methods.registry import DENSE, make_method

if TYPE_CHECKING:
    from nwc.cli.compress import Compress

DISTILLED_FILE = "distilled.safetensors"
_CONFIG_BYTES = 330
"""What the facts add to config.json."""


@dataclass(kw_only=True)
class Preparation:
    """A run that can begin.

    Args:
        options: as given.
        folder: the checkpoint's, as given.
        source: what is compressed.
        plan: what to compress.
        job: how.
        windows: calibration tokens, or images as the model takes them; None without.
        reference: name of the codec, if the file shall only refer to it.
        work: where the run keeps its state.
    """

    options: Compress
    folder: Path
    source: SourceCheckpoint
    plan: Plan
    job: Job
    windows: Tensor | None
    reference: str | None
    work: WorkFolder

    def open_work(self, *, restart: bool) -> bool:
        """Make the work folder ready; returns whether there is a run to go on with.

        Raises:
            ConfigError: it belongs to another run, or the target cannot be met.
        """
        going_on = self.work.open(self.fingerprint, restart=restart)
        if not going_on and self.windows is not None:
            self.work.write_tensors(CALIBRATION_FILE, {"windows": self.windows}, {})
        return going_on and not self.work.is_empty

    def change_model(self) -> None:
        """Let the method change the model as a whole first, if it wants to."""
        method = self.job.method
        if not isinstance(method, DenseMethod):
            return
        with self._shown(f"{method.name} changes the model") as show:
            folder = changed_model(
                method, self.source, self.plan, self.windows, self.work.path / "prepared", show
            )
        if folder != self.source.folder:
            self.source = SourceCheckpoint(folder)
            self.plan = make_plan(self.source, self.options.keep)
            self.job = dataclasses.replace(self.job, folder=folder.absolute())

    def find_gain(self) -> None:
        """Look at the whole model, if that decides who gets more bits, and find the gain.

        Raises:
            ConfigError: the target cannot be met.
        """
        if self.work.read_json(RATE_FILE) is not None:
            return
        if not self.job.method.steered:
            self.work.write_json(RATE_FILE, {})
            return
        survey: dict[str, Sensitivity] = {}
        if self.windows is not None and self.job.survey_tokens:
            windows = self.windows[: max(1, self.job.survey_tokens // self.window_tokens)]
            stream = BlockStream(
                self.source, require_skeleton(self.plan), windows, device=self.job.device
            )
            with self._shown("looking at the model") as show:
                Survey(self.plan, stream, self.work, self.job.seed).run(show)
            survey = read_survey(self.work, by_row=self.job.waterfill == "rows")
        with err.status("sampling the weights to find the step"):
            self.work.write_json(RATE_FILE, self._controller(survey).to_json())

    def distilled(
        self, units: list[CompressedUnit]
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Norms and biases tuned end to end, if that was asked for, and what came of it."""
        if self.windows is None or not self.options.distill_tokens:
            return {}, None
        found = self.work.read_tensors(DISTILLED_FILE)
        if found is None:
            count = max(2, self.options.distill_tokens // self.window_tokens)
            with self._shown("tuning norms and biases end to end") as show:
                changed, facts = distil(
                    self.plan, self.source, self.job.method, units, self.windows[:count],
                    DistillationConfig(seed=self.job.seed),
                    device=self.job.device, on_progress=show,
                )  # fmt: skip
            found = changed, dataclasses.asdict(facts)
            self.work.write_tensors(DISTILLED_FILE, *found)
        return found

    @contextmanager
    def _shown(self, title: str) -> Iterator[Callable[[float, str], None]]:
        """A bar for work that says which share of it is done."""
        with progress(title, 1) as advance:
            seen = 0.0

            def show(share: float, note: str) -> None:
                nonlocal seen
                advance(share - seen, note)
                seen = share

            yield show

    @property
    def window_tokens(self) -> int:
        """Tokens, or patches of an image, in a calibration window."""
        assert self.windows is not None
        return require_skeleton(self.plan).window_tokens(self.windows)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the bytes of the result."""
        options, job = self.options, self.job
        codec = KeptDigest()
        for key, value in job.method.codec.state_dict().items():
            codec.add(key, value)
        windows = None
        if self.windows is not None:
            windows = xxhash.xxh3_64_hexdigest(self.windows.numpy().tobytes())
        return {
            "model": self.source.digest(),
            "calibration": windows,
            "codec": codec.hexdigest() if job.method.codec.config.kind != "identity" else None,
            **self.facts,
            "--codec-by-reference": self.reference,
            "--keep": list(options.keep),
            "--profile": options.profile,
            "--waterfill": job.waterfill,
            "--survey-tokens": job.survey_tokens,
            "decisions": dataclasses.asdict(options.decisions),
            "--seed": options.seed,
            "--threads": job.threads,
            "--device": job.device,
            "--distill-tokens": options.distill_tokens,
            "fine-tuning": None if job.recovery is None else dataclasses.asdict(job.recovery),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        }

    @property
    def asked(self) -> float:
        """Bits per parameter, over the compressed tensors or over the whole folder."""
        found = self.options.tensor_bits or self.options.file_bits
        assert found is not None
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """What the file says of how it was made."""
        options = self.options
        return {
            "method": options.method,
            "preset": options.preset if options.method == "nwc" else None,
            "bits" if options.file_bits is None else "file_bits": self.asked,
            "calibrated": self.windows is not None,
            "recovery": self.job.recovery is not None,
            "features": "compressed" if self.job.drifted else "original",
            "nwc": nwc.__version__,
        } | self._dense_facts

    @property
    def _dense_facts(self) -> dict[str, Any]:
        method = self.job.method
        if not isinstance(method, DenseMethod):
            return {}
        return {"dense": True, "setting": method.setting.label}

    @property
    def kept_bytes(self) -> int:
        """What tensors that are not compressed take, with their entries in the header."""
        source = self.source
        total = 0
        for key in self.plan.kept:
            entry = {"dtype": source.dtypes[key], "shape": source.shapes[key]}
            total += source.size(key) + len(json.dumps({key: entry}, separators=(",", ":")))
            total += len(',"data_offsets":[,]') + 2 * len(str(self.source_bytes // 2))
        return total

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors of the checkpoint."""
        return sum(map(self.source.size, self.source.keys()))

    def _controller(self, survey: Mapping[str, Sensitivity]) -> RateController:
        options, plan = self.options, self.plan
        target = options.tensor_bits
        if target is None:
            others = self.kept_bytes + self.other_files
            target = _left_for_tensors(self.asked, self.source, plan, others)
            if not 0 < target <= 8:
                raise ConfigError(
                    f"--file-bits {options.file_bits:g} leaves {target:.2f} bits for each of "
                    f"{plan.parameters:,} compressed weights after {others:,} bytes of kept "
                    "tensors and files; wanted 2 to 7"
                )
        return RateController.measure(
            self.source, plan, self.job.method,
            target=target,
            calibrated=self.windows is not None,
            fixed_bytes=codec_bytes(self.job.method.codec, self.reference) + self._header_bytes,
            survey=survey,
            profile=PROFILES[options.profile],
        )  # fmt: skip

    @property
    def _header_bytes(self) -> int:
        """Header of the file but for the entries of matrices, kept tensors and codec."""
        stacked: dict[str, int] = {}
        for t in self.plan.tensors:
            if t.part is not None:
                stacked[t.key] = t.part + 1
        about = checkpoint_facts(
            codec_facts(self.job.method.codec, self.reference),
            "0" * 16,
            "0" * 16,
            stacked,
            self.facts,
        )
        text = json.dumps({"__metadata__": {"format": "pt", "nwc": about}}, separators=(",", ":"))
        bank = len('"nwc.tables":{"dtype":"U8","shape":[400],"data_offsets":[,]},') + 14
        guard = guard_bytes(self.plan.tensors[0].key)
        return 8 + len(text) + bank + guard + 4  # to the next multiple of eight

    @property
    def other_files(self) -> int:
        """Bytes of everything in the folder that is not safetensors."""
        from nwc.cli.result import draft_files  # noqa: PLC0415  (which takes a Preparation)

        config = 0 if self.source.config is None else _CONFIG_BYTES
        path = self.source.folder / "config.json"
        config += path.stat().st_size if path.exists() else 0
        copied = sum(path.stat().st_size for path in small_files(self.source.folder))
        return config + copied + sum(len(text.encode()) for text in draft_files(self).values())


def prepare(options: Compress, folder: Path) -> Preparation:
    """Find out everything that does not take long.

    Raises:
        NWCError: an option, the model or the text cannot be used.
    """
    source = SourceCheckpoint(folder)
    plan = make_plan(source, options.keep)
    for note in plan.notes:
        err.print(f"note: {note}", markup=False)
    device = usable_device(options.device)
    method, reference = _method(options, device, _tensor_bits(options, source, plan))
    windows = None if options.calibration is None else calibration_windows(options, plan, folder)
    work = WorkFolder(work_path(options.output))
    recovery = _recovery(options, plan, windows, device)
    waterfill = _waterfill(options, plan, method) if windows is not None else "columns"
    job = Job(
        folder=folder,
        keep=options.keep,
        method=method,
        work=work.path.absolute(),
        calibrated=windows is not None,
        recovery=recovery,
        order="experts" if any(t.role for t in plan.tensors) else "dense",
        waterfill=waterfill,
        survey_tokens=0 if waterfill == "columns" else options.survey_tokens,
        drifted=_drifted(options, fine_tuned=recovery is not None),
        seed=options.seed,
        device=device,
        threads=options.thread_count,
    )
    return Preparation(
        options=options, folder=folder, source=source, plan=plan, job=job, windows=windows,
        reference=reference, work=work,
    )  # fmt: skip


def _waterfill(options: Compress, plan: Plan, method: LayerMethod) -> str:
    """What steps differ over in a calibrated run."""
    if not method.waterfills:
        return "columns"
    skeleton = require_skeleton(plan)
    if skeleton.takes_images and not skeleton.classifies and options.waterfill != "columns":
        err.print(
            "note: the model has no classes of its own, so no loss whose gradients could be "
            "looked at: steps follow columns alone"
        )
        return "columns"
    return options.waterfill


def _drifted(options: Compress, *, fine_tuned: bool) -> bool:
    drifted = options.features == "compressed" or (options.features == "auto" and fine_tuned)
    if drifted and (options.workers > 1 or options.ray is not None):
        err.print(
            "note: with compressed features every block waits for the one before it; "
            "--features original lets workers share the work"
        )
    return drifted


def work_path(output: Path) -> Path:
    """Where a run keeps its state: beside its output."""
    return output.parent / f"{output.name}.work"


def _recovery(
    options: Compress, plan: Plan, windows: Tensor | None, device: str
) -> RecoveryConfig | None:
    """How blocks are fine-tuned; None if they are not."""
    if windows is None or options.no_recovery:
        return None
    if options.method in DENSE and not options.recovery:
        return None
    # App. A.5 saw fine-tuning harm GPT-OSS.
    family = getattr(require_skeleton(plan).model.config, "model_type", "")
    if family == "gpt_oss" and not options.recovery:
        err.print(
            "note: without fine-tuning, which harms models of this kind (--recovery does it)"
        )
        return None
    if len(windows) < 2:
        err.print(
            f"note: without fine-tuning: {windows.numel()} tokens make one window, of which none "
            "can be held out; use longer text or a shorter --context"
            if windows.dim() == 2
            else "note: without fine-tuning: of one image none can be held out; use more"
        )
        return None
    return RecoveryConfig(steps=options.recovery_steps, bf16=fast_bf16(device))


def _tensor_bits(options: Compress, source: SourceCheckpoint, plan: Plan) -> float:
    """About how many bits the compressed weights will have."""
    if options.tensor_bits is not None:
        return options.tensor_bits
    assert options.file_bits is not None
    return _left_for_tensors(options.file_bits, source, plan, sum(map(source.size, plan.kept)))


def _left_for_tensors(
    file_bits: float, source: SourceCheckpoint, plan: Plan, others: int
) -> float:
    """Bits for each compressed weight, after so many bytes of everything else."""
    everything = plan.parameters + sum(map(source.count, plan.kept))
    return (file_bits * everything - 8 * others) / plan.parameters


def _method(options: Compress, device: str, bits: float) -> tuple[LayerMethod, str | None]:
    """The method, and the name of its codec if the file shall only refer to it."""
    codec, reference = None, None
    if options.method == Neural.name:
        codec, name = _codec(options, bits)
        reference = name if options.codec_by_reference else None
    elif options.codec or options.codec_by_reference:
        raise ConfigError(
            f"method {options.method} has no codec; drop --codec and --codec-by-reference"
        )
    method = make_method(
        options.method, bits=bits, codec=codec, decisions=options.decisions,
        profile=PROFILES[options.profile], seed=options.seed, device=device,
    )  # fmt: skip
    if isinstance(method, DenseMethod):
        _check_dense(options, method)
    return method, reference


def _check_dense(options: Compress, method: DenseMethod) -> None:
    if options.file_bits is not None:
        raise ConfigError(
            f"method {method.name} comes in a few rates and writes no file of its own; use --bits"
        )
    if method.needs_calibration and options.calibration is None:
        raise ConfigError(f"method {method.name} wants --calibration")
    err.print(
        f"note: method {method.name} has no file format: the output holds dense weights, and its "
        f"report the bits of {method.setting.label} ({method.nominal_bits:.4g} for each weight)",
        markup=False,
    )


def _codec(options: Compress, bits: float) -> tuple[WeightCodec, str]:
    if options.codec is not None:
        return load_codec(options.codec), options.codec.stem
    return shipped_codec(options.preset, bits)
