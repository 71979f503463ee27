"""Safetensors files: written as a stream, read lazily, accounted for to the byte.

A safetensors file is a 64-bit header length, a JSON header, and the tensors' bytes without holes.
The library's own writer wants all tensors at once; this one appends them to a scratch file as they
come and puts the header before them at the end, so that memory holds one tensor.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nwc.errors import FormatError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}

_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's elements as safetensors stores them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


class ShardWriter:
    """Writes one safetensors file a tensor at a time.

    Args:
        path: the file; exists only after `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scratch_path = path.with_suffix(".scratch")
        self._scratch = self._scratch_path.open("wb")
        self._entries: dict[str, Any] = {}
        self.size = 0

    @property
    def keys(self) -> list[str]:
        """Names written so far."""
        return list(self._entries)

    def add(self, key: str, tensor: Tensor | bytes) -> None:
        """Append a tensor, or bytes as a U8 tensor."""
        if isinstance(tensor, bytes):
            data, dtype, shape = tensor, "U8", [len(tensor)]
        else:
            if tensor.dtype not in _DTYPES:
                raise FormatError(f"{key} has dtype {tensor.dtype}, which safetensors cannot hold")
            data, dtype, shape = raw_bytes(tensor), _DTYPES[tensor.dtype], list(tensor.shape)
        self._scratch.write(data)
        end = self.size + len(data)
        self._entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [self.size, end]}
        self.size = end

    def abandon(self) -> None:
        """Stop writing; the file will not exist."""
        self._scratch.close()

    def close(self, metadata: dict[str, str]) -> None:
        """Write header and tensors to the final path."""
        self._scratch.close()
        header = json.dumps(
            {"__metadata__": {"format": "pt", **metadata}, **self._entries}, separators=(",", ":")
        ).encode()
        header += b" " * (-len(header) % 8)
        with self.path.open("wb") as out, self._scratch_path.open("rb") as body:
            out.write(struct.pack("<Q", len(header)) + header)
            shutil.copyfileobj(body, out, 2**22)
        self._scratch_path.unlink()


Reader = Callable[[Path, int, int], memoryview]
"""(file, first byte, number of bytes) -> these bytes, fewer where the file ends, writable."""


def read_range(path: Path, start: int, size: int) -> memoryview:
    """Plain `Reader`; other threads run meanwhile."""
    # An array is a buffer; unlike a bytearray it is not filled with zeros first.
    buffer = memoryview(np.empty(size, dtype=np.uint8))  # type: ignore[arg-type]
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < size and (count := file.readinto(buffer[done:])):
            done += count
    return buffer[:done]


class Shard:
    """One safetensors file, opened lazily.

    Args:
        path: the file.
        reader: how to read a part of it.

    Raises:
        FormatError: it is missing, truncated, or not safetensors.
    """

    def __init__(self, path: Path, reader: Reader = read_range) -> None:
        self.path = path
        self._reader = reader
        try:
            self.file_size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
                if not 2 <= length <= min(MAX_HEADER_BYTES, self.file_size - 8):
                    raise FormatError(
                        f"{path} of {self.file_size} bytes announces a header of {length}: it is "
                        "truncated or not a safetensors file"
                    )
                self.header_text = file.read(length)
            safe_open(path, "pt")  # checks the header: no holes, nothing beyond the end
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{path} cannot be read: {error}") from error
        self.header_size = 8 + length
        header = json.loads(self.header_text)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.entries: dict[str, Any] = header

    def entry_size(self, key: str) -> int:
        """Bytes that a tensor's entry takes in the header, its comma included."""
        text = json.dumps({key: self.entries[key]}, separators=(",", ":"))
        return len(text.encode()) - 1

    def data_size(self, key: str) -> int:
        """Bytes of a tensor."""
        start, end = self.entries[key]["data_offsets"]
        return end - start

    def tensor(self, key: str) -> Tensor:
        """A tensor in its own dtype, in memory of its own.

        Raises:
            FormatError: its dtype is unknown, or the file has shrunk.
        """
        entry = self.entries[key]
        if entry["dtype"] not in _BY_NAME:
            raise FormatError(
                f"{key} in {self.path} has dtype {entry['dtype']}, wanted one of {list(_BY_NAME)}"
            )
        dtype, shape = _BY_NAME[entry["dtype"]], entry["shape"]
        if self.data_size(key) == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._read(key), dtype=dtype).view(shape)

    def data(self, key: str) -> memoryview:
        """Bytes of a U8 tensor.

        Raises:
            FormatError: it is not one, or the file has shrunk.
        """
        entry = self.entries[key]
        if entry["dtype"] != "U8" or len(entry["shape"]) != 1:
            raise FormatError(
                f"{key} in {self.path} is {entry['dtype']} {entry['shape']}, wanted bytes"
            )
        return self._read(key)

    def _read(self, key: str) -> memoryview:
        size = self.data_size(key)
        start = self.header_size + self.entries[key]["data_offsets"][0]
        data = self._reader(self.path, start, size)
        if len(data) != size:
            raise FormatError(
                f"{self.path} ends {size - len(data)} bytes before {key} does; fetch it again"
            )
        return data
