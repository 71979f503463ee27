"""Writes a compressed checkpoint: a folder that looks like a Hugging Face model.

Everything is written to a folder beside the output that takes the output's name in one step at the
very end; whatever goes wrong before leaves the output as it was.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from nwc.codec.model import WeightCodec
from nwc.coding.tables import TableBank
from nwc.errors import FormatError
from nwc.formats import layout
from nwc.formats.codec_file import fingerprint, synthesis_vector
from nwc.formats.kept import KeptDigest
from nwc.formats.shards import ShardWriter

VERSION = f"{layout.MAJOR}.{layout.MINOR}"
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}


class FolderWriter:
    """Writes a model folder shard by shard; complete or absent.

    Args:
        output: the folder to make.
        source: whose small files (tokenizer, licence, ...) are copied.
        overwrite: replace an existing output.
        shard_bytes: size at which the next shard is begun.
        scratch: where the folder is made, on the same disk as the output; what a killed run left
            there is removed. Without it, a fresh place beside the output.

    Raises:
        FormatError: the output exists or cannot be made.
    """

    def __init__(
        self,
        output: Path,
        source: Path,
        *,
        overwrite: bool = False,
        shard_bytes: int = 4 * 10**9,
        scratch: Path | None = None,
    ) -> None:
        check_output(output, source, overwrite=overwrite)
        self.output = output
        self.source = source
        self.shard_bytes = shard_bytes
        self._shard: ShardWriter | None = None
        self._closed: list[ShardWriter] = []
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if scratch is None:
                name = tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent)
                self._scratch = Path(name)
            else:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                self._scratch = scratch
        except OSError as error:
            raise FormatError(f"cannot write beside {output}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shard is not None:
            self._shard.abandon()
        shutil.rmtree(self._scratch, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FormatError(
                f"no space left for {self.output}; nothing was written. Free some, or choose an "
                "--output on another disk"
            ) from error

    def add(self, key: str, tensor: Tensor | bytes) -> None:
        """Append a tensor, or bytes."""
        size = len(tensor) if isinstance(tensor, bytes) else tensor.numel() * tensor.itemsize
        if self._shard is not None and self._shard.size + size > self.shard_bytes:
            self._close_shard({})
        if self._shard is None:
            name = f"shard-{len(self._closed):05d}.safetensors"
            self._shard = ShardWriter(self._scratch / name)
        self._shard.add(key, tensor)

    def _close_shard(self, metadata: dict[str, str]) -> None:
        assert self._shard is not None
        self._shard.close(metadata)
        self._closed.append(self._shard)
        self._shard = None

    def finish(self, config: dict[str, Any] | None, metadata: dict[str, str]) -> Path:
        """Write the last shard, index, config and small files.

        Args:
            config: content of config.json; None leaves it out.
            metadata: `__metadata__` of the last shard.

        Returns:
            The folder, complete, where it waits for `publish`.
        """
        self._close_shard(metadata)
        self._name_shards()
        for path in small_files(self.source):
            shutil.copyfile(path, self._scratch / path.name)
        if config is not None:
            (self._scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return self._scratch

    def publish(self, files: Mapping[str, str] | None = None) -> None:
        """Put the finished folder in place.

        Args:
            files: name -> text of further files. One of the source with the same name stays
                under `original-NAME`.
        """
        for name, text in (files or {}).items():
            path = self._scratch / name
            if path.exists():
                path.rename(path.with_name(f"original-{name}"))
            path.write_text(text)
        self._scratch.chmod(0o755)
        if not self.output.exists():
            self._scratch.rename(self.output)
            return
        retired = self._scratch.with_name(f"{self._scratch.name}-replaced")
        shutil.rmtree(retired, ignore_errors=True)
        self.output.rename(retired)
        self._scratch.rename(self.output)
        shutil.rmtree(retired)

    def _name_shards(self) -> None:
        count = len(self._closed)
        if count == 1:
            self._closed[0].path.rename(self._scratch / layout.SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(self._closed):
            name = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            shard.path.rename(self._scratch / name)
            weight_map |= dict.fromkeys(shard.keys, name)
        total = sum(shard.size for shard in self._closed)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self._scratch / layout.INDEX_FILE).write_text(json.dumps(index, indent=0) + "\n")


def check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    """Whether a folder may be made, or replaced, without losing anything but a checkpoint.

    Raises:
        FormatError: it may not.
    """
    if not output.exists():
        return
    if not overwrite:
        raise FormatError(f"{output} exists; choose another --output or add --overwrite")
    if source.resolve().is_relative_to(output.resolve()):
        raise FormatError(f"{output} holds the model itself; choose another --output")
    inside = list(output.iterdir()) if output.is_dir() else [output]
    checkpoint = any(p.suffix == ".safetensors" for p in inside) and all(
        p.is_file() for p in inside
    )
    if inside and not (output.is_dir() and checkpoint):
        raise FormatError(
            f"{output} exists and is not a folder of safetensors only, so --overwrite leaves it "
            "alone; remove it yourself, or choose another --output"
        )


def small_files(source: Path) -> list[Path]:
    """Files of a model's folder that are copied as they are: tokenizer, licence, card ..."""
    return [path for path in sorted(source.iterdir()) if _is_small_file(path)]


def _is_small_file(path: Path) -> bool:
    """Whether a file of the source belongs beside the weights: tokenizer, licence, card ..."""
    if not path.is_file() or path.name.startswith("."):
        return False
    return path.suffix not in _WEIGHT_SUFFIXES and path.name not in (
        "config.json",
        layout.INDEX_FILE,
    )


class CheckpointWriter(FolderWriter):
    """Writes a compressed checkpoint. See `FolderWriter` for the arguments."""

    def add_codec(self, codec: WeightCodec, by_reference: str | None) -> int:
        """Store the synthesis transform, or only the name and hash by which a reader finds it.

        Call it first: FP16 data belongs before the byte streams, which have no alignment.

        Returns:
            Bytes that it takes, names included.
        """
        self._kept, self._all = KeptDigest(), KeptDigest()
        self._stacked: dict[str, int] = {}
        self._guarded = False
        self._codec = codec_facts(codec, by_reference)
        vector = synthesis_vector(codec)
        if by_reference is None and len(vector):
            self._add(layout.CODEC_KEY, vector)
        return codec_bytes(codec, by_reference)

    def add_kept(self, key: str, tensor: Tensor) -> None:
        """Store a tensor as it is."""
        self._add(key, tensor)
        self._kept.add(key, tensor)

    def add_stream(self, key: str, data: bytes, part: int | None = None) -> None:
        """Store a compressed tensor, or one of the matrices of a tensor of three dimensions.

        Args:
            key: the tensor.
            data: the stream.
            part: which matrix; they come in order from 0.
        """
        if not self._guarded:
            self._guarded = True
            self._add(key, layout.GUARD_BYTES)
        if part is None:
            self._add(key + layout.STREAM_SUFFIX, data)
            return
        assert part == self._stacked.get(key, 0)
        self._stacked[key] = part + 1
        self._add(f"{key}.{part}{layout.STREAM_SUFFIX}", data)

    def _add(self, key: str, value: Tensor | bytes) -> None:
        self.add(key, value)
        self._all.add(key, value)

    def finish_checkpoint(
        self, bank: TableBank, config: dict[str, Any] | None, facts: dict[str, Any]
    ) -> Path:
        """Store the shared tables and complete the folder; see `FolderWriter.finish`.

        Args:
            bank: tables of all streams.
            config: the model's config.json, or None.
            facts: about the compression: method, preset, bits asked for.
        """
        if bank.tables:
            self._add(layout.BANK_KEY, bank.to_bytes())
        about = checkpoint_facts(
            self._codec, self._kept.hexdigest(), self._all.hexdigest(), self._stacked, facts
        )
        if config is not None:
            compression = {"quant_method": layout.QUANT_METHOD, "version": VERSION, **facts}
            config = {**config, "quantization_config": compression}
        return self.finish(config, {layout.METADATA_KEY: about})


def checkpoint_facts(
    codec: dict[str, Any],
    kept: str,
    everything: str,
    stacked: dict[str, int],
    facts: dict[str, Any],
) -> str:
    """The JSON text in the header.

    Args:
        codec: see `codec_facts`.
        kept: hash over the kept tensors.
        everything: hash over all.
        stacked: tensors of three dimensions -> how many matrices.
        facts: about the compression.
    """
    about = {"version": VERSION, "codec": codec, "kept": kept, "hash": everything}
    about |= {"stacked": stacked} if stacked else {}
    return json.dumps(about | facts, separators=(",", ":"))


def codec_facts(codec: WeightCodec, by_reference: str | None) -> dict[str, Any]:
    """What the header says of the codec."""
    facts: dict[str, Any] = {"config": codec.config.to_dict()}
    if by_reference is not None:
        facts |= {"reference": by_reference, "fingerprint": fingerprint(codec)}
    return facts


def guard_bytes(key: str) -> int:
    """What the guard takes in the header; offsets have the digits of a small file's.

    Args:
        key: the tensor that is compressed first.
    """
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [10**6, 10**6]}
    return len(json.dumps({key: entry}, separators=(",", ":"))) - 1


def codec_bytes(codec: WeightCodec, by_reference: str | None) -> int:
    """What a synthesis transform takes in a file, its entry in the header included."""
    size = 0 if by_reference is not None else len(synthesis_vector(codec))
    if not size:
        return 0
    entry = {"dtype": "F16", "shape": [size], "data_offsets": [0, 2 * size]}
    text = json.dumps({layout.CODEC_KEY: entry}, separators=(",", ":"))
    return 2 * size + len(text) - 1
