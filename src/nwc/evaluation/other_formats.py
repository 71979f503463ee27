"""The same matrix in formats of other packages, to be timed beside ours where they are installed.

Each goes from what a file would hold to a dense BF16 matrix, by the package's own functions. All
round to the nearest level: how well a level is chosen changes neither size nor speed.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

GROUP = 128
"""Neighbours in a row that share a scale, in the formats of 4 bits."""

ZSTD_LEVEL = 3
ZSTD_PACKAGE = '"neural-weight-compression[bench]"'


class OtherFormat(NamedTuple):
    """A matrix in a format.

    Args:
        package: that decodes it, with its version.
        bits: per weight, scales included.
        decode: to BF16.
    """

    package: str
    bits: float
    decode: Callable[[], Tensor]


def other_formats(
    W: Float[Tensor, "m n"],
) -> tuple[dict[str, OtherFormat], dict[str, str]]:
    """A matrix in every format that can be had here.

    Returns:
        Formats by name, and for those that cannot be had why.
    """
    found, skipped = {}, {}
    for name, make in _FORMATS.items():
        if name not in _ANY_SHAPE and (W.shape[1] % GROUP or W.shape[0] % 32):
            skipped[name] = f"wants rows in groups of {GROUP}, got {W.shape[0]} x {W.shape[1]}"
            continue
        try:
            # They greet on standard output and warn of what is theirs.
            with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = make(W)
        except ImportError as error:
            skipped[name] = f"{error}: pip install {_PACKAGES[name]}"
            continue
        off = relative_error(made.decode(), W)
        if not off < 0.25:
            raise AssertionError(f"{name} is {off:.3g} off its matrix; nothing is timed")
        found[name] = made
    return found, skipped


def relative_error(found: Float[Tensor, "m n"], W: Float[Tensor, "m n"]) -> float:
    """|found - W|_F / |W|_F."""
    return float((found.float() - W).norm() / W.norm())


def _zstd_int8(W: Float[Tensor, "m n"]) -> OtherFormat:
    import zstandard

    scales = W.abs().amax(1, keepdim=True) / 127
    integers = (W / scales).round().to(torch.int8)
    data = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(integers.numpy().tobytes())
    decompressor = zstandard.ZstdDecompressor()
    rounded = scales.bfloat16()

    def decode() -> Tensor:
        buffer = bytearray(decompressor.decompress(data))
        stored = torch.frombuffer(buffer, dtype=torch.int8).view(W.shape)
        return stored.to(torch.bfloat16).mul_(rounded)

    return OtherFormat(
        f"zstandard {zstandard.__version__}, level {ZSTD_LEVEL}",
        8 * (len(data) + rounded.nbytes) / W.numel(),
        decode,
    )


def _torchao_int4(W: Float[Tensor, "m n"]) -> OtherFormat:
    """Its affine quantiser.

    None of its tensors of 4 bits gives a matrix back on the CPU: they are made for products on
    GPUs. So two codes are put into a byte here, which is the plain one of its layouts.
    """
    from torchao.quantization import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    block, levels = (1, GROUP), (0, 15)
    given = W.bfloat16()
    scales, zeros = choose_qparams_affine(
        given, MappingType.ASYMMETRIC, block, torch.uint8, *levels
    )
    codes = quantize_affine(given, block, scales, zeros, torch.uint8, *levels)
    pairs = codes[:, ::2] | codes[:, 1::2] << 4

    def decode() -> Tensor:
        both = torch.stack((pairs & 15, pairs >> 4), dim=-1).view(W.shape)
        return dequantize_affine(
            both, block, scales, zeros, torch.uint8, *levels, output_dtype=torch.bfloat16
        )

    # A zero point is one of 16 levels, whatever type it is kept in.
    bits = 8 * (pairs.nbytes + scales.nbytes) + 4 * zeros.numel()
    return OtherFormat(f"torchao {version('torchao')}", bits / W.numel(), decode)


def _torchao_nf4(W: Float[Tensor, "m n"]) -> OtherFormat:
    from torchao.quantization import to_nf4

    stored = to_nf4(W.bfloat16())
    size = sum(
        getattr(stored, name).nbytes
        for name in ("quantized_data", "quantized_scalers", "quantization_factor")
    )
    return OtherFormat(
        f"torchao {version('torchao')}", 8 * size / W.numel(), stored.get_original_weight
    )


def _gptqmodel_int4(W: Float[Tensor, "m n"]) -> OtherFormat:
    """GPTQ's file format, decoded by the layer that runs on every device."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    rows, columns = W.shape
    scales = W.view(rows, -1, GROUP).abs().amax(-1) / 7
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = W
    layer = TorchLinear(
        bits=4,
        group_size=GROUP,
        sym=True,
        desc_act=False,
        in_features=columns,
        out_features=rows,
        bias=False,
    )
    groups = torch.arange(columns, dtype=torch.int32) // GROUP
    # The other ways to pack compile an extension first.
    layer.pack_original(linear, scales, torch.full_like(scales, 8), groups)
    layer.to(torch.bfloat16)
    names = ("qweight", "qzeros", "scales", "g_idx")
    size = sum(getattr(layer, name).nbytes for name in names)

    def decode() -> Tensor:
        weight: Tensor = layer.dequantize_weight()
        return weight.T

    return OtherFormat(f"GPTQModel {version('gptqmodel')}", 8 * size / W.numel(), decode)


_FORMATS: dict[str, Callable[[Float[Tensor, "m n"]], OtherFormat]] = {
    "zstd int8": _zstd_int8,
    "torchao int4": _torchao_int4,
    "torchao nf4": _torchao_nf4,
    "gptqmodel int4": _gptqmodel_int4,
}
_ANY_SHAPE = ("zstd int8",)
_PACKAGES = {
    "zstd int8": ZSTD_PACKAGE,
    "torchao int4": "torchao",
    "torchao nf4": "torchao",
    "gptqmodel int4": "gptqmodel",
}
