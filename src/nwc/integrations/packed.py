"""Weights that stay compressed in memory and are decoded each time a module asks for them.

A module keeps its class's own forward. Only where that reads a parameter, say `self.weight`, it
finds a property that decodes, so Linear, GPT-2's Conv1D, routers and experts are all served alike
and compute exactly what they would with the decoded parameter.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Self

import torch
from torch import Tensor, nn

from nwc.codec.compressed import CompressedTensor, Decoding
from nwc.errors import BitstreamError
from nwc.formats.checkpoint import Checkpoint

_PLACE = "nwc_place"
"""An empty buffer of a packed module: moved and cast with it, it says where to and in what dtype
weights are wanted."""

_PACKED = "nwc_packed"


class PackedMatrix:
    """A matrix in compressed form: one stream, or several that are joined.

    Streams are read, parsed and compared with their checksums here, once, and stay in memory.

    Args:
        checkpoint: whose streams they are.
        keys: names of the matrices.
        dim: along which they are joined.

    Raises:
        BitstreamError: a stream is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, keys: Sequence[str], dim: int = 0) -> None:
        self.checkpoint = checkpoint
        self.keys = tuple(keys)
        self._dim = dim
        self._parts = [_whole(checkpoint, key) for key in keys]
        self._sizes = [part.shape[dim] for part in self._parts]
        rows, columns = self._parts[0].shape
        joined = sum(self._sizes)
        self.shape = (joined, columns) if dim == 0 else (rows, joined)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Nothing in here ever changes, so that copies of a model share it."""
        return self

    def decode_into(self, out: Tensor) -> None:
        """Decode.

        Args:
            out: of its shape, on the CPU.

        Raises:
            BitstreamError: a stream is damaged.
        """
        start = 0
        # Inference mode is a matter of the thread: the threads that decode would not be in it.
        with torch.inference_mode(mode=False), torch.no_grad():
            for key, part, size in zip(self.keys, self._parts, self._sizes, strict=True):
                place = out.narrow(self._dim, start, size)
                try:
                    _decode(part, place)
                except BitstreamError as error:
                    raise BitstreamError(f"{key}: {error}") from error
                start += size

    def weight(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The matrix as a module uses it.

        Without gradients it lies in a buffer that the next matrix of its shape will take once
        nobody holds this one; with them it is a tensor of its own, for it may be saved for the
        backward pass.
        """
        own = torch.is_grad_enabled()
        weight = _empty(self.shape, dtype) if own else _buffers.lend(self.shape, dtype)
        self.decode_into(weight)
        if device.type == "cpu":
            return weight
        if own:
            return weight.to(device)
        return _buffers.lend(self.shape, dtype, device).copy_(weight)


class PackedStack:
    """A stack of matrices [E, ., .], the experts of a block, of which one at a time is decoded.

    Indexed by a number it gives that matrix. Whatever else is done with it, as by functions that
    want all experts at once, is done with the whole stack, decoded.

    Args:
        matrices: in order.
        dtype: of what is decoded.
        device: where that is put.
    """

    def __init__(
        self, matrices: Sequence[PackedMatrix], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._matrices = matrices
        self.dtype = dtype
        self.device = device
        self.shape = torch.Size((len(matrices), *matrices[0].shape))

    def __len__(self) -> int:
        return len(self._matrices)

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401  (whatever indexes a tensor)
        one = isinstance(index, int) or (
            isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool
        )
        if not one:
            return self.dense()[index]
        return self._matrices[int(index)].weight(self.dtype, self.device)

    def dense(self) -> Tensor:
        """The whole stack."""
        out = _empty(self.shape, self.dtype)
        for i, matrix in enumerate(self._matrices):
            matrix.decode_into(out[i])
        return out.to(self.device)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Any function of PyTorch works on the decoded stack."""

        def decoded(value: Any) -> Any:  # noqa: ANN401
            if isinstance(value, PackedStack):
                return value.dense()
            if isinstance(value, list | tuple):
                return type(value)(decoded(v) for v in value)
            return value

        given = {name: decoded(value) for name, value in (kwargs or {}).items()}
        return function(*decoded(args), **given)


def pack(
    module: nn.Module, name: str, packed: PackedMatrix | list[PackedMatrix], dtype: torch.dtype
) -> None:
    """Replace a parameter of a module by its compressed form.

    Args:
        module: keeps its class as a base.
        name: of the parameter.
        packed: a matrix, or the matrices of a stack.
        dtype: in which it is decoded, until the module is cast.
    """
    contents: dict[str, PackedMatrix | list[PackedMatrix]] = getattr(module, _PACKED, {})
    original = type(module).__mro__[1] if contents else type(module)
    device = module._parameters[name].device  # type: ignore[union-attr]
    del module._parameters[name]
    contents[name] = packed
    module.__class__ = _packed_class(original, tuple(sorted(contents)))
    setattr(module, _PACKED, contents)
    if _PLACE not in module._buffers:
        place = torch.empty(0, dtype=dtype, device=device)
        module.register_buffer(_PLACE, place, persistent=False)
    # Nothing is left of it that transformers should initialise.
    module._is_hf_initialized = True  # type: ignore[assignment]


def unpack(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module its decoded parameters back, if it has packed ones."""
    contents: dict[str, PackedMatrix | list[PackedMatrix]] = getattr(module, _PACKED, {})
    if not contents:
        return
    with torch.enable_grad():  # tensors of their own, not lent ones
        found = {name: getattr(module, name) for name in contents}
    module.__class__ = type(module).__mro__[1]
    del module.__dict__[_PACKED], module._buffers[_PLACE]
    module._non_persistent_buffers_set.discard(_PLACE)
    for name, value in found.items():
        dense = value.dense() if isinstance(value, PackedStack) else value
        module.register_parameter(name, nn.Parameter(dense.detach().to(dtype)))


def packed_matrices(model: nn.Module) -> dict[str, PackedMatrix]:
    """All matrices of a model that are packed, by a name of their own."""
    found = {}
    for path, module in model.named_modules():
        for name, packed in getattr(module, _PACKED, {}).items():
            if isinstance(packed, PackedMatrix):
                found[f"{path}.{name}"] = packed
            else:
                found |= {f"{path}.{name}.{i}": matrix for i, matrix in enumerate(packed)}
    return found


@functools.cache
def _packed_class(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A class like another, some of whose parameters are properties that decode."""

    def reader(name: str) -> property:
        def read(module: nn.Module) -> Tensor | PackedStack:
            place = module._buffers[_PLACE]
            assert place is not None
            packed = getattr(module, _PACKED)[name]
            if isinstance(packed, PackedMatrix):
                return packed.weight(place.dtype, place.device)
            return PackedStack(packed, place.dtype, place.device)

        return property(read)

    return type(f"Packed{cls.__name__}", (cls,), {name: reader(name) for name in names})


def _whole(checkpoint: Checkpoint, key: str) -> CompressedTensor:
    """A stream, compared with its checksum."""
    tensor = checkpoint.compressed(key)
    try:
        tensor.stream.container.check_hash()
    except BitstreamError as error:
        raise BitstreamError(f"{key}: {error}") from error
    return tensor


def _decode(tensor: CompressedTensor, out: Tensor) -> None:
    """Decode a matrix into place, in as many threads as torch computes in, this one included."""
    place = out if out.is_contiguous() else None
    job = tensor.decoding(out.dtype, out=place)
    _do(job, torch.get_num_threads())
    if place is None:
        out.copy_(job.result())
    else:
        job.result()
    # Made again in 20 microseconds, but as large as the stream of a small matrix.
    tensor.stream.tables.kernel_cache.clear()


def _do(job: Decoding, threads: int) -> None:
    """Do all parts; none is left running if one fails."""
    numbers = itertools.count()

    def work() -> None:
        # One number after the other: `next` of a count is a single step under the GIL.
        while (i := next(numbers)) < job.parts:
            job.part(i)

    helpers = [_threads().submit(work) for _ in range(min(threads, job.parts) - 1)]
    try:
        work()
    finally:
        if helpers:
            wait(helpers)
    for helper in helpers:
        helper.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads that decode tiles."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="nwc")


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    # Made under inference mode it could not be written outside of it.
    with torch.inference_mode(mode=False):
        return torch.empty(shape, dtype=dtype, device=device)


class _Buffers(threading.local):
    """Buffers that decoded matrices are lent in, one for each shape unless more are in use."""

    def __init__(self) -> None:
        self._all: dict[object, list[tuple[Tensor, weakref.ref[Tensor]]]] = {}

    def lend(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
    ) -> Tensor:
        """A tensor that nobody else holds; its values are those of before."""
        buffers = self._all.setdefault((shape, dtype, device), [])
        free = next((i for i, (_, lent) in enumerate(buffers) if lent() is None), len(buffers))
        buffer = buffers.pop(free)[0] if free < len(buffers) else _empty(shape, dtype, device)
        view = buffer.view(shape)
        buffers.append((buffer, weakref.ref(view)))
        return view

    def size(self) -> int:
        """Bytes of all of them."""
        return sum(buffer.nbytes for each in self._all.values() for buffer, _ in each)


_buffers = _Buffers()


def buffer_bytes() -> int:
    """Memory that this thread decodes into, for all packed models together."""
    return _buffers.size()
