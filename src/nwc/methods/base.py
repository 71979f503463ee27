"""What every compression method implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nwc.codec.compressed import CompressedTensor, MeasuredErrors
from nwc.codec.model import WeightCodec
from nwc.coding.tables import TableBank


@dataclass(frozen=True, kw_only=True)
class LayerWeight:
    """A matrix to compress.

    Args:
        name: the checkpoint's key.
        W: [m, n], outputs by inputs, FP32.
        transposed: the checkpoint holds W^T.
        row_weights: [m], second moment of the model's gradient at every output; None if it was
            not measured.
        offset: by how much its log2 gain differs from that of all layers compressed alike.
    """

    name: str
    W: Tensor
    transposed: bool = False
    row_weights: Tensor | None = None
    offset: float = 0.0


class Importance(NamedTuple):
    """What is known of a layer's inputs and outputs.

    Args:
        diagonal: [n], diag H.
        d: [n], diagonal of D of H = L^T D L.
        row_weights: see `LayerWeight`.
    """

    diagonal: Tensor
    d: Tensor
    row_weights: Tensor | None


@dataclass(frozen=True, kw_only=True)
class CompressedLayer:
    """A compressed matrix as bytes.

    Args:
        name: the checkpoint's key.
        data: the stream.
        errors: what it cost.
        by_importance: relative error of the columns in each tenth of diag H, quietest first; None
            without H.
    """

    name: str
    data: bytes
    errors: MeasuredErrors
    by_importance: list[float] | None = None


class LayerMethod(ABC):
    """Compresses the matrices of one layer, or of several that share their input.

    Args:
        codec: whose synthesis transform a reader of the result needs.
    """

    name: str
    waterfills: bool = False
    """Whether it makes use of `LayerWeight.row_weights` and `offset`."""
    steered: bool = True
    """Whether its rate follows the gain."""

    def __init__(self, codec: WeightCodec) -> None:
        self.codec = codec

    @abstractmethod
    def compress(
        self, layers: list[LayerWeight], H: Tensor | None, log2_gain: float, bank: TableBank
    ) -> list[CompressedLayer]:
        """Compress matrices of equally many columns.

        Args:
            layers: the matrices.
            H: Hessian [n, n] of their common input; None quantises without feedback.
            log2_gain: log2 of the gain, the reciprocal step on unit-variance weights; every layer
                adds its offset.
            bank: where tables shared by the file are kept.
        """

    @abstractmethod
    def estimate(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> float:
        """Bits per weight that a sample of rows of a matrix would take, tables and lanes aside.

        Args:
            layer: the sample.
            importance: of the matrix; None for data-free compression.
            log2_gain: see `compress`.
        """

    def restore(self, data: bytes, bank: TableBank) -> Tensor:
        """The weight that a reader of the file will get, as the checkpoint holds it, FP32.

        Args:
            data: of a `CompressedLayer`.
            bank: tables that it may refer to.
        """
        return CompressedTensor(data, self.codec, bank).weight()
