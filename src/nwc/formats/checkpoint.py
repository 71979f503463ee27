"""Reads a compressed checkpoint lazily: one tensor, or one tile, at a time."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nwc.codec.compressed import CompressedTensor, Decoding
from nwc.codec.config import CodecConfig
from nwc.codec.gpu import decode
from nwc.codec.model import WeightCodec
from nwc.coding.rate import BitBudget, budget
from nwc.coding.tables import TableBank
from nwc.errors import BitstreamError, ConfigError, FormatError
from nwc.formats import layout
from nwc.formats.codec_file import fill_synthesis, fingerprint, load_codec
from nwc.formats.kept import KeptDigest
from nwc.formats.overlap import overlapped
from nwc.formats.shards import Reader, Shard, read_range
from nwc.formats.shipped import shipped_codecs
from nwc.kernels import gpu
from nwc.kernels.gpu import BadMatrixError


class Checkpoint:
    """A compressed checkpoint; see `nwc.open`.

    Args:
        path: its folder.
        codec: the codec file, for a checkpoint that only refers to one that is not shipped.
        reader: how to read a part of a file.

    Raises:
        FormatError: the folder is not a compressed checkpoint, or not one that this nwc reads.
        BitstreamError: one of its files is damaged.
    """

    def __init__(
        self, path: str | Path, codec: str | Path | None = None, reader: Reader = read_range
    ) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FormatError(f"{path} is not a folder; wanted a compressed checkpoint")
        self.shards = [_open_shard(file, reader) for file in self._files()]
        self._places = {key: shard for shard in self.shards for key in shard.entries}
        self.facts = self._read_facts()
        self.codec = self._read_codec(None if codec is None else Path(codec))
        # Reading a tensor tile by tile must not parse it for every tile.
        self._last: tuple[str, CompressedTensor | None] = "", None
        self._bank = TableBank()
        if layout.BANK_KEY in self._places:
            self._bank = TableBank.from_bytes(self._places[layout.BANK_KEY].data(layout.BANK_KEY))
        self._stored = {
            key.removesuffix(layout.STREAM_SUFFIX): key
            for key in self._places
            if not layout.is_shared(key) and not self._is_guard(key)
        }
        self._stacked = self._read_stacked()

    def _files(self) -> list[Path]:
        index = self.path / layout.INDEX_FILE
        if index.exists():
            names = layout.parse_object(index.read_text(), str(index)).get("weight_map")
            if not isinstance(names, dict):
                raise FormatError(f"{index} has no weight_map; the checkpoint is damaged")
            return [self.path / Path(str(name)).name for name in sorted(set(names.values()))]
        single = self.path / layout.SINGLE_FILE
        if not single.exists():
            raise FormatError(
                f"{self.path} holds neither {layout.SINGLE_FILE} nor {layout.INDEX_FILE}; wanted "
                "the output of nwc compress"
            )
        return [single]

    def _read_facts(self) -> dict[str, Any]:
        # transformers, saving, repeats the text in every shard.
        texts = {s.metadata[layout.METADATA_KEY] for s in self.shards if "nwc" in s.metadata}
        if len(texts) != 1:
            raise FormatError(
                f"{self.path} is not a compressed checkpoint ({len(texts)} descriptions "
                "in its files, wanted 1); make one with nwc compress"
            )
        facts = layout.parse_object(texts.pop(), f"header of {self.path}")
        layout.check_version(facts.get("version"), str(self.path))
        return facts

    def _is_guard(self, key: str) -> bool:
        """Whether a stored name only keeps other loaders out (`layout.GUARD_BYTES`)."""
        twins = key + layout.STREAM_SUFFIX, f"{key}.0{layout.STREAM_SUFFIX}"
        return self._places[key].data_size(key) == 0 and any(t in self._places for t in twins)

    def _read_stacked(self) -> dict[str, list[str]]:
        """Tensors of three dimensions -> names of their matrices, each a stream of its own."""
        stacked = self.facts.get("stacked", {})
        found = {}
        for key, count in stacked.items() if isinstance(stacked, dict) else ():
            if not isinstance(count, int) or not 0 < count <= len(self._stored):
                raise FormatError(
                    f"{self.path}: {key} has {count} matrices; the header is damaged"
                )
            found[key] = [f"{key}.{i}" for i in range(count)]
            absent = [name for name in found[key] if name not in self._stored]
            if absent:
                raise FormatError(f"{self.path} lacks matrix {absent[0]} of {key}; fetch it again")
        return found

    def _read_codec(self, given: Path | None) -> WeightCodec:
        about = self.facts.get("codec")
        if not isinstance(about, dict):
            raise FormatError(f"{self.path} does not name its codec; the header is damaged")
        if "reference" in about:
            return self._find_codec(about, given)
        try:
            codec = WeightCodec(CodecConfig.from_dict(about.get("config", {})))
        except ConfigError as error:
            raise FormatError(f"{self.path}: {error}") from error
        vector = torch.zeros(0, dtype=torch.float16)
        if layout.CODEC_KEY in self._places:
            vector = self._places[layout.CODEC_KEY].tensor(layout.CODEC_KEY)
        fill_synthesis(codec, vector, str(self.path))
        return codec

    def _find_codec(self, about: dict[str, Any], given: Path | None) -> WeightCodec:
        name = str(about["reference"])
        path = given or shipped_codecs().get(name)
        if path is None:
            raise FormatError(
                f"{self.path} refers to codec {name!r}, which is not shipped with nwc; give its "
                "file (--codec, or codec= in Python)"
            )
        codec = load_codec(path)
        if fingerprint(codec) != about.get("fingerprint"):
            raise FormatError(
                f"{path} is not the codec that {self.path} was made with (fingerprint "
                f"{fingerprint(codec)}, wanted {about.get('fingerprint')}); give the right file"
            )
        return codec

    def keys(self) -> list[str]:
        """Names of all tensors, as in the original checkpoint."""
        parts = {name: key for key, names in self._stacked.items() for name in names}
        return list(dict.fromkeys(parts.get(name, name) for name in self._stored))

    def compressed_keys(self) -> list[str]:
        """Names of the compressed ones; of a tensor of three dimensions, of each matrix."""
        return [key for key, stored in self._stored.items() if stored != key]

    def matrices(self, key: str) -> list[str]:
        """Names of the matrices of a tensor of three dimensions; none if it is not compressed."""
        return self._stacked.get(key, [])

    def kept_keys(self) -> list[str]:
        """Names of the others, which are stored as they were."""
        return [key for key, stored in self._stored.items() if stored == key]

    def __contains__(self, key: str) -> bool:
        return key in self._stored or key in self._stacked

    def compressed(self, key: str) -> CompressedTensor:
        """The stream of a compressed tensor.

        Raises:
            FormatError: there is no compressed tensor of that name.
            BitstreamError: it is damaged.
        """
        stored = self._stored.get(key, key)
        if stored == key:
            kind = "kept as it was" if key in self._stored else "not in the checkpoint"
            raise FormatError(f"{key} is {kind}; the compressed tensors are compressed_keys()")
        last, tensor = self._last
        if last != key or tensor is None:
            data = self._places[stored].data(stored)
            with _naming(key):
                tensor = CompressedTensor(data, self.codec, self._bank)
            self._last = key, tensor
        return tensor

    def kept(self, key: str) -> Tensor:
        """A tensor that was not compressed, in its own dtype.

        Raises:
            FormatError: there is none of that name.
        """
        if self._stored.get(key) != key:
            raise FormatError(f"{key} is not a kept tensor of {self.path}")
        return self._places[key].tensor(key)

    def check_kept(self) -> None:
        """Raise BitstreamError unless the hash over all kept tensors matches."""
        digest = KeptDigest()
        for key in self.kept_keys():
            digest.add(key, self.kept(key))
        if digest.hexdigest() != self.facts.get("kept"):
            raise BitstreamError(
                f"{self.path}: checksum of the kept tensors does not match: one of "
                f"{', '.join(self.kept_keys()[:3])} ... is damaged"
            )

    def check_hash(self) -> str:
        """The hash of everything that is stored, as it was printed when the file was made.

        Raises:
            BitstreamError: it is another one: tensors are damaged, missing or exchanged.
        """
        digest = KeptDigest()
        for key, shard in self._places.items():
            value = shard.tensor(key)
            digest.add(key, value)
        found = digest.hexdigest()
        if found != self.facts.get("hash"):
            raise BitstreamError(
                f"{self.path}: its content has hash {found}, the header says "
                f"{self.facts.get('hash')}: tensors are damaged, missing or exchanged"
            )
        return found

    def tensor(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        executor: ThreadPoolExecutor | None = None,
    ) -> Tensor:
        """A tensor by its name in the original checkpoint, decoded if it is compressed.

        Args:
            key: its name.
            dtype: wanted dtype; None gives FP32 for compressed and the stored one for kept ones.
                Integer tensors keep theirs.
            device: where to put it.
            executor: threads that decode tiles.

        Raises:
            FormatError: there is no such tensor.
            BitstreamError: it is damaged.
        """
        if gpu.available(device) and key in self and self._stored.get(key) != key:
            return self._on_gpu([key], dtype or torch.float32, device)[key]
        work = self._begin(key, dtype)
        for _ in (map if executor is None else executor.map)(work.part, range(work.parts)):
            pass
        return work.result().to(device)

    def _begin(self, key: str, dtype: torch.dtype | None) -> Decoding:
        """Read a tensor; its decoding is left to be done."""
        if key in self._stacked:
            return self._begin_stack(key, dtype or torch.float32)
        if key not in self._stored:
            near = next(iter(self._stored), "none")
            raise FormatError(f"{self.path} has no tensor {key}; its names are like {near}")
        if self._stored[key] == key:
            kept = self.kept(key)
            cast = dtype is not None and kept.is_floating_point()
            return Decoding(0, lambda _: None, lambda: kept.to(dtype if cast else kept.dtype))
        return self._begin_matrix(key, dtype or torch.float32)

    def _begin_matrix(self, key: str, dtype: torch.dtype, out: Tensor | None = None) -> Decoding:
        stream = self.compressed(key)
        with _naming(key):
            work = stream.decoding(dtype, out=out)

        def part(i: int) -> None:
            with _naming(key):
                work.part(i)

        return Decoding(work.parts, part, work.result)

    def _begin_stack(self, key: str, dtype: torch.dtype) -> Decoding:
        """Matrices that decode side by side into one tensor of three dimensions."""
        names = self._stacked[key]
        shape = self.compressed(names[0]).shape
        whole = torch.empty(len(names), *shape, dtype=dtype)
        works = []
        for name, out in zip(names, whole, strict=True):
            found = self.compressed(name).shape
            if found != shape:
                raise FormatError(
                    f"{self.path}: {name} is {found}, the first of {key} {shape}; the file is "
                    "damaged"
                )
            works.append(self._begin_matrix(name, dtype, out))
        ends = list(accumulate(work.parts for work in works))

        def part(i: int) -> None:
            at = bisect_right(ends, i)
            works[at].part(i - ends[at] + works[at].parts)

        def result() -> Tensor:
            for work in works:
                work.result()
            return whole

        return Decoding(ends[-1], part, result)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor by its name in the original checkpoint; nothing is decoded.

        Raises:
            FormatError, BitstreamError: as `tensor`.
        """
        if key in self._stacked:
            return len(self._stacked[key]), *self.shape(self._stacked[key][0])
        if self._stored.get(key) == key:
            return tuple(self._places[key].entries[key]["shape"])
        return self.compressed(key).shape

    def tile(self, key: str, i: int) -> Tensor:
        """Tile i of a compressed tensor: FP32 [columns, rows], nothing else decoded.

        Raises:
            FormatError, BitstreamError: as `compressed`; or there is no such tile.
        """
        stream = self.compressed(key)
        with _naming(key):
            return stream.tile(i)

    def tensors(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name: reading, decoding and synthesis of several overlap.

        As many threads as torch uses decode. Arguments and errors are those of `tensor`.
        """
        keys = self.keys()
        if gpu.available(device):
            kept = set(self.kept_keys())
            compressed = [key for key in keys if key not in kept]
            found = self._on_gpu(compressed, dtype or torch.float32, device)
            for key in keys:
                yield key, self.tensor(key, dtype, device) if key in kept else found.pop(key)
            return
        starts = (partial(self._begin, key, dtype) for key in keys)
        values = overlapped(starts, torch.get_num_threads())
        for key, value in zip(keys, values, strict=True):
            yield key, value.to(device)

    def state_dict(
        self,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        on_tensor: Callable[[str], object] | None = None,
    ) -> dict[str, Tensor]:
        """All tensors, floating-point ones in `dtype`.

        Args:
            dtype: of the floating-point ones.
            device: where to put them.
            on_tensor: told the name of each when it is there.
        """
        found = {}
        for key, value in self.tensors(dtype, device):
            found[key] = value
            if on_tensor is not None:
                on_tensor(key)
        return found

    def _on_gpu(
        self, keys: list[str], dtype: torch.dtype, device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compressed tensors, decoded together by the kernels of a GPU."""
        names = [name for key in keys for name in self._stacked.get(key, [key])]
        try:
            parts = decode([self.compressed(name) for name in names], device, dtype)
            found = dict(zip(names, parts, strict=True))
        except BadMatrixError as error:
            raise BitstreamError(f"{names[error.matrix]}: {error}") from error
        for key in keys:
            if key in self._stacked:
                found[key] = torch.stack([found.pop(name) for name in self._stacked[key]])
        return found

    def stream_bytes(self, key: str) -> int:
        """Bytes of the stream of a compressed tensor."""
        stored = self._stored[key]
        return self._places[stored].data_size(stored)

    def tensor_bytes(self, key: str) -> BitBudget:
        """Bytes that one compressed tensor takes, its entry in the shard's header included."""
        stored = self._stored[key]
        entry = self._places[stored].entry_size(stored)
        return budget(self.compressed(key).stream) + BitBudget(headers=entry)

    def shared_bytes(self) -> BitBudget:
        """Bytes that all compressed tensors share: codec, table bank, headers.

        Everything in the shards that is neither a compressed tensor nor a kept one and its entry.
        """
        codec = tables = headers = 0
        for shard in self.shards:
            headers += shard.header_size
            for key in shard.entries:
                if key == layout.BANK_KEY:
                    tables += shard.data_size(key)
                elif key == layout.CODEC_KEY:
                    codec += shard.data_size(key)
                elif not self._is_guard(key):
                    headers -= shard.entry_size(key)
        return BitBudget(codec=codec, tables=tables, headers=headers)

    def file_bytes(self) -> int:
        """Bytes of the whole folder."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def config(self) -> dict[str, Any] | None:
        """The model's config.json without the part about compression; None if there is none."""
        path = self.path / "config.json"
        if not path.exists():
            return None
        config = json.loads(path.read_text())
        config.pop("quantization_config", None)
        return config


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Errors of the stream name its tensor."""
    try:
        yield
    except BitstreamError as error:
        raise BitstreamError(f"{key}: {error}") from error


def _open_shard(path: Path, reader: Reader) -> Shard:
    if not path.exists():
        raise FormatError(f"shard {path.name} of {path.parent} is missing; fetch it again")
    try:
        return Shard(path, reader)
    except FormatError as error:
        raise BitstreamError(str(error)) from error


def is_compressed(folder: Path) -> bool:
    """Whether config.json says that nwc made the folder.

    Raises:
        FormatError: there is one, but it is not JSON.
    """
    path = folder / "config.json"
    if not path.exists():
        return False
    config = layout.parse_object(path.read_text(), str(path))
    return (config.get("quantization_config") or {}).get("quant_method") == layout.QUANT_METHOD
