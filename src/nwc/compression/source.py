"""The checkpoint that is compressed: lazy, read a tensor or a few rows at a time."""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nwc.errors import ConfigError, FormatError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


def find_model(name: str) -> Path:
    """Folder of a model: a local path, or a hub name downloaded to the local cache.

    Raises:
        FormatError: neither a folder nor a model the hub knows.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise FormatError(f"{name} is a file, wanted the folder of a model")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FormatError(f"{name} does not exist; wanted the folder of a model or a hub name")
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow to import)

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
            )
        )
    except Exception as error:  # the hub client raises errors of several libraries
        raise FormatError(
            f"{name} is not a local folder, and the hub did not give it: {error}"
        ) from error


class SourceCheckpoint:
    """A folder of safetensors, with or without an index and a config.

    Args:
        folder: where it lies.

    Raises:
        FormatError: not a folder of readable safetensors, or a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = self._find_files()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in sorted(set(self._files.values())):
            with _open(file) as handle:
                for key in handle.keys():  # noqa: SIM118  (not a mapping)
                    if self._files.get(key) == file:
                        piece = handle.get_slice(key)
                        self.shapes[key] = tuple(piece.get_shape())
                        self.dtypes[key] = piece.get_dtype()
        absent = sorted(set(self._files) - set(self.shapes))
        if absent:
            raise FormatError(
                f"{folder} lacks {len(absent)} tensors that its index names, {absent[0]} first; "
                "download the checkpoint again"
            )

    def _find_files(self) -> dict[str, Path]:
        index = self.folder / _INDEX
        if index.exists():
            try:
                names = json.loads(index.read_text())["weight_map"]
                files = {key: self.folder / Path(name).name for key, name in names.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FormatError(f"{index} is not a weight index: {error}") from error
            for file in sorted(set(files.values())):
                if not file.exists():
                    raise FormatError(
                        f"shard {file.name} of {self.folder} is missing; download it again"
                    )
            return files
        single = self.folder / _SINGLE
        found = [single] if single.exists() else sorted(self.folder.glob("*.safetensors"))
        if not found:
            others = sorted(p.name for p in self.folder.glob("*") if p.suffix in (".bin", ".pt"))
            hint = f" ({others[0]} is a pickle: convert it to safetensors first)" if others else ""
            raise FormatError(
                f"{self.folder} holds no .safetensors file{hint}; wanted the folder of a model"
            )
        files = {}
        for file in found:
            with _open(file) as handle:
                for key in handle.keys():  # noqa: SIM118
                    if key in files:
                        raise FormatError(
                            f"tensor {key} is in both {files[key].name} and {file.name} of "
                            f"{self.folder}; keep one, or add {_INDEX}"
                        )
                    files[key] = file
        return files

    @property
    def config(self) -> dict[str, Any] | None:
        """`config.json`, or None for a folder of bare weights.

        Raises:
            FormatError: it is not a JSON object.
        """
        path = self.folder / "config.json"
        if not path.exists():
            return None
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise FormatError(f"{path} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise FormatError(f"{path} holds {type(config).__name__}, wanted an object")
        return config

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self.shapes)

    def tensor_itemsize(self, key: str) -> int:
        """Bytes of one element."""
        return {"64": 8, "32": 4, "16": 2}.get(self.dtypes[key][-2:], 1)

    def count(self, key: str) -> int:
        """Elements of a tensor."""
        return math.prod(self.shapes[key])

    def size(self, key: str) -> int:
        """Bytes of a tensor."""
        return self.count(key) * self.tensor_itemsize(key)

    def digest(self) -> str:
        """XXH3-64 of all files that hold tensors, and of the config."""
        total = xxhash.xxh3_64()
        config = self.folder / "config.json"
        for path in [*sorted(set(self._files.values())), *([config] if config.exists() else [])]:
            with path.open("rb") as file:
                while block := file.read(2**24):
                    total.update(block)
        return total.hexdigest()

    def is_float(self, key: str) -> bool:
        """Whether a tensor holds ordinary floating-point weights."""
        return self.dtypes[key] in _FLOATS

    def dtype(self, key: str) -> torch.dtype:
        """Of a tensor of ordinary floating-point weights."""
        return _FLOATS[self.dtypes[key]]

    def tensor(self, key: str) -> Tensor:
        """A whole tensor in its own dtype."""
        return next(self.tensors([key]))[1]

    def tensors(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Several tensors; each file is mapped only while they are read from it."""
        for file in sorted({self._files[key] for key in keys}):
            with _open(file) as handle:
                for key in keys:
                    if self._files[key] == file:
                        yield key, handle.get_tensor(key).clone()

    def matrix(self, key: str, transposed: bool, part: int | None = None) -> Tensor:
        """A matrix as W [m, n] in FP32.

        Args:
            key: the tensor that holds it.
            transposed: it is stored as [n, m].
            part: which matrix of a tensor of three dimensions.

        Raises:
            FormatError: it has a NaN or an infinity.
        """
        with _open(self._files[key]) as handle:
            W = (handle.get_tensor(key) if part is None else handle.get_slice(key)[part]).float()
        require_finite(key, W)
        return W.T.contiguous() if transposed else W

    def rows(
        self, key: str, transposed: bool, pieces: list[slice], part: int | None = None
    ) -> Tensor:
        """Some rows of W [m, n] in FP32, without reading the others."""
        with _open(self._files[key]) as handle:
            lazy = handle.get_slice(key)
            parts = []
            for piece in pieces:
                where = (slice(None), piece) if transposed else (piece,)
                rows = lazy[where if part is None else (part, *where)].float()
                parts.append(rows.T if transposed else rows)
            return torch.cat(parts)

    def matching(self, pattern: str) -> list[str]:
        """Keys that a pattern with * and ? matches.

        Raises:
            ConfigError: none.
        """
        found = fnmatch.filter(self.shapes, pattern)
        if not found:
            raise ConfigError(
                f"pattern {pattern!r} matches none of the {len(self.shapes)} tensors; they are "
                f"named like {next(iter(self.shapes))}"
            )
        return found


def require_finite(key: str, W: Tensor) -> None:
    """Raise FormatError if a tensor of the checkpoint has a NaN or an infinity."""
    bad = int((~torch.isfinite(W)).sum())
    if bad:
        raise FormatError(
            f"{key} has {bad} weights that are NaN or infinite; repair the checkpoint, or "
            f"leave the tensor as it is with --keep '{key}'"
        )


def _open(file: Path) -> Any:  # noqa: ANN401  (safetensors ships no types)
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{file} is not a readable safetensors file: {error}") from error
