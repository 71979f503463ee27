"""`nwc compress` and `nwc decompress`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nwc
from nwc.calibration.corpus import token_windows
from nwc.cli.arguments import (
    DTYPES,
    Calibration,
    CodecFile,
    Compressed,
    Folder,
    Model,
    Patterns,
    Tokens,
    usable_device,
)
from nwc.cli.console import Command, err, out, print_json, progress, quiet_transformers
from nwc.codec.model import WeightCodec
from nwc.coding.tables import TableBank
from nwc.coding.tiling import PROFILES
from nwc.compression.pipeline import Report, compress_model
from nwc.compression.plan import Plan, make_plan, require_skeleton
from nwc.compression.rate_control import RateController
from nwc.compression.source import SourceCheckpoint, find_model
from nwc.compression.stream import BlockStream
from nwc.errors import CalibrationError, ConfigError
from nwc.formats.checkpoint import Checkpoint
from nwc.formats.codec_file import load_codec
from nwc.formats.shipped import shipped_codec
from nwc.formats.writer import CheckpointWriter, FolderWriter, check_output
from nwc.integrations.tokenizer import tokenizer_of
from nwc.methods.base import LayerMethod
from nwc.methods.registry import METHODS

MIN_BITS, MAX_BITS = 2.0, 7.0
_SHARED_HEADER_BYTES = 550


@dataclass(frozen=True, kw_only=True)
class Compress(Command):
    """Compress a model to a small, verified folder.

    Example: nwc compress MODEL --output OUT --bits 4.5 --calibration text.txt
    """

    model: Model
    """Folder of safetensors, or a hub name."""
    output: Folder
    """Folder to make."""
    bits: float = 4.5
    """Bits per parameter over the compressed tensors, every overhead counted; 2 to 7."""
    method: Literal["nwc", "ecsq"] = "nwc"
    """nwc: the learned codec; ecsq: entropy-coded uniform scalar quantisation."""
    preset: Literal["default", "paper"] = "default"
    """Codec of method nwc: one small codec for every rate, or the paper's six networks."""
    calibration: Calibration = None
    """Text file, .jsonl file with "text" fields, or data set NAME[:CONFIG[:SPLIT]]."""
    data_free: bool = False
    """Compress without calibration text; so it is, too, if neither is given."""
    calibration_tokens: int = 131_072
    """Tokens to calibrate with, at most."""
    context: Tokens = None
    """Tokens in a calibration window; default: the model's, at most 2048."""
    keep: Patterns = ()
    """Pattern (* and ?) of tensors to leave as they are; may be given several times."""
    profile: Literal["balanced", "archive", "latency"] = "balanced"
    """Weights in an independently decodable tile: 32 K, 256 K or 16 K."""
    codec: CodecFile = None
    """Codec file to use instead of a shipped one."""
    codec_by_reference: bool = False
    """Leave the synthesis transform out of the files; readers need the same codec."""
    seed: int = 0
    """Seed of everything random; nothing in the present methods is."""
    device: str = "auto"
    """Where to quantise: cpu, cuda, or auto."""
    overwrite: bool = False
    """Replace an existing output."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """See the class."""
        self._check()
        quiet_transformers()
        folder = find_model(self.model)
        check_output(self.output, folder, overwrite=self.overwrite)
        source = SourceCheckpoint(folder)
        plan = make_plan(source, self.keep)
        for note in plan.notes:
            err.print(f"note: {note}", markup=False)
        if not (self.calibration or self.data_free):
            err.print("note: compressing data-free; --calibration TEXT gives better quality")
        stream = None if self.calibration is None else self._stream(source, plan, folder)
        method, reference = self._method()
        with CheckpointWriter(self.output, folder, overwrite=self.overwrite) as writer:
            codec_bytes = writer.add_codec(method.codec, reference)
            for key in sorted(plan.kept, key=lambda k: -source.tensor_itemsize(k)):
                writer.add_kept(key, source.tensor(key))
            controller = self._controller(source, plan, method, codec_bytes)
            bank, report = TableBank(), Report()
            self._compress(source, plan, method, controller, bank, stream, report, writer)
            writer.finish_checkpoint(bank, source.config, self._facts())
        for warning in report.warnings:
            err.print(f"warning: {warning}", markup=False)
        for name, damping in report.damping.items():
            err.print(f"note: {name} needed damping {damping} of mean(diag H)", markup=False)
        self._summary(plan)
        return 0

    def _compress(
        self,
        source: SourceCheckpoint,
        plan: Plan,
        method: LayerMethod,
        controller: RateController,
        bank: TableBank,
        stream: BlockStream | None,
        report: Report,
        writer: CheckpointWriter,
    ) -> None:
        """Hand the layers to the writer; the bar counts weights, twice if calibrated."""
        sizes = {t.key: t.parameters for t in plan.tensors}
        share = 0.0
        if stream is not None:
            share = plan.parameters / stream.batches / len(require_skeleton(plan).blocks)
        steps = plan.parameters if stream is None else 2 * plan.parameters
        with progress("compressing", steps) as advance:
            layers = compress_model(
                source, plan, method, controller, bank,
                stream=stream, report=report, on_batch=lambda: advance(share),
            )  # fmt: skip
            for layer in layers:
                writer.add_stream(layer.name, layer.data)
                advance(sizes[layer.name], layer.name)

    def _check(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(f"--bits is {self.bits}, wanted {MIN_BITS:g} to {MAX_BITS:g}")
        if self.data_free and self.calibration:
            raise ConfigError("--data-free and --calibration exclude each other; drop one")
        if self.calibration_tokens < 1 or (self.context is not None and self.context < 2):
            raise ConfigError(
                f"--calibration-tokens is {self.calibration_tokens} and --context {self.context}, "
                "wanted at least 1 and 2"
            )

    def _stream(self, source: SourceCheckpoint, plan: Plan, folder: Path) -> BlockStream:
        skeleton = require_skeleton(plan)
        limit = getattr(skeleton.model.config, "max_position_embeddings", None) or 2048
        context = self.context or min(2048, limit)
        if context > limit:
            raise ConfigError(f"--context is {context}, the model takes at most {limit} tokens")
        assert self.calibration is not None
        windows = token_windows(
            self.calibration, tokenizer_of(folder), tokens=self.calibration_tokens, context=context
        )
        vocabulary = skeleton.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if int(windows.max()) >= vocabulary:
            raise CalibrationError(
                f"the tokenizer gives token {int(windows.max())}, the model knows {vocabulary}: "
                f"the tokenizer files in {folder} belong to another model"
            )
        return BlockStream(source, skeleton, windows)

    def _method(self) -> tuple[LayerMethod, str | None]:
        """The method, and the name of its codec if the file shall only refer to it."""
        device = usable_device(self.device)
        profile = PROFILES[self.profile]
        if self.method == "ecsq":
            if self.codec or self.codec_by_reference:
                raise ConfigError(
                    "method ecsq has no codec; drop --codec and --codec-by-reference"
                )
            return METHODS["ecsq"](None, profile, device), None
        codec, name = self._codec()
        return METHODS["nwc"](codec, profile, device), name if self.codec_by_reference else None

    def _codec(self) -> tuple[WeightCodec, str]:
        if self.codec is not None:
            return load_codec(self.codec), self.codec.stem
        return shipped_codec(self.preset, self.bits)

    def _controller(
        self, source: SourceCheckpoint, plan: Plan, method: LayerMethod, codec_bytes: int
    ) -> RateController:
        with err.status("sampling the weights to find the step"):
            return RateController(
                source, plan, method,
                target=self.bits, calibrated=self.calibration is not None,
                fixed_bytes=codec_bytes + _SHARED_HEADER_BYTES, profile=PROFILES[self.profile],
            )  # fmt: skip

    def _facts(self) -> dict[str, object]:
        return {
            "method": self.method,
            "preset": self.preset if self.method == "nwc" else None,
            "bits": self.bits,
            "calibrated": self.calibration is not None,
            "nwc": nwc.__version__,
        }

    def _summary(self, plan: Plan) -> None:
        from nwc.cli.inspect import inspection  # noqa: PLC0415  (a verb beside this one)

        found = inspection(Checkpoint(self.output, self.codec))
        bits = found["bits_per_parameter"]
        if self.json:
            print_json({"output": str(self.output), **found})
            return
        out.print(
            f"{self.output}: {bits['tensors']:.3f} bits per parameter over "
            f"{plan.parameters:,} compressed weights, {bits['file']:.3f} over the whole folder "
            f"({found['file_bytes']:,} bytes)",
            markup=False,
        )


@dataclass(frozen=True, kw_only=True)
class Decompress(Command):
    """Turn a compressed folder back into an ordinary checkpoint.

    Example: nwc decompress OUT --output MODEL-restored
    """

    model: Compressed
    """Compressed folder."""
    output: Folder
    """Folder to make."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of all floating-point tensors."""
    codec: CodecFile = None
    """Codec file, for a folder that only refers to one that is not shipped."""
    overwrite: bool = False
    """Replace an existing output."""

    def run(self) -> int:
        """See the class."""
        checkpoint = Checkpoint(self.model, self.codec)
        config = checkpoint.config()
        if config is not None:
            config["dtype"] = self.dtype
            config.pop("torch_dtype", None)
        keys = checkpoint.keys()
        with (
            FolderWriter(self.output, self.model, overwrite=self.overwrite) as writer,
            ThreadPoolExecutor(os.cpu_count()) as executor,
            progress("decompressing", len(keys)) as advance,
        ):
            for key in keys:
                writer.add(key, checkpoint.tensor(key, DTYPES[self.dtype], executor=executor))
                advance(1, key)
            writer.finish(config, {})
        out.print(f"{self.output}: {len(keys)} tensors in {self.dtype}", markup=False)
        return 0
