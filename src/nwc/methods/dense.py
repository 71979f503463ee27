"""Methods without a file format of their own: weights as they restore them, bits by their formula.

What such a method makes of a matrix is kept as a dense matrix. The bytes that its codes would take
are counted by purpose, metadata included, as every file of `nwc` counts its own.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from safetensors.torch import load, save
from torch import Tensor, nn

from nwc.codec.config import IDENTITY
from nwc.codec.model import WeightCodec
from nwc.coding.rate import BitBudget
from nwc.coding.tables import TableBank
from nwc.errors import ConfigError
from nwc.methods.base import CompressedLayer, Importance, LayerMethod, LayerWeight
from nwc.methods.errors import by_importance, measure
from nwc.numerics.ldlq import ldl

if TYPE_CHECKING:
    from jaxtyping import Float

_KEY = "weight"
_FAR = 1.5
"""Bits that a setting may be away from what was asked for."""


class Setting(NamedTuple):
    """How a method can be used.

    Args:
        label: for people.
        bits: of a code.
    """

    label: str
    bits: int


class Quantised(NamedTuple):
    """A matrix after quantisation.

    Args:
        weight: [m, n], what is restored, FP32.
        budget: what its codes would take in a file.
    """

    weight: Tensor
    budget: BitBudget


class Matrix(NamedTuple):
    """A matrix that will be quantised, in a model of transformers.

    Args:
        name: see `LayerWeight`.
        kind: what it has in common with its like in other blocks.
        parameter: path of the parameter that holds it.
        view: parameter, or anything else of its shape, -> W [m, n] in the same memory.
    """

    name: str
    kind: str
    parameter: str
    view: Callable[[Tensor], Tensor]


class Prepared(NamedTuple):
    """What a method changes of a model before it quantises it.

    Args:
        parameters: by name; all others stay. A name that the checkpoint lacks is added.
        config: entries of config.json that change.
    """

    parameters: dict[str, Tensor]
    config: dict[str, Any]


class DenseMethod(LayerMethod):
    """See the module.

    Args:
        bits: per weight, asked for; the nearest setting of the method is taken.
        seed: of everything random.
        device: where quantisation runs.

    Raises:
        ConfigError: the method has no setting near so many bits.
    """

    steered = False
    settings: ClassVar[Mapping[float, Setting]]
    """Bits per weight of a large matrix, metadata included -> setting."""
    needs_calibration: bool = False
    """Whether it cannot do without H."""
    matrices: Sequence[Matrix] = ()
    """What `prepare` may count on being quantised afterwards; set before it is called."""

    def __init__(self, bits: float, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(WeightCodec(IDENTITY))
        self.seed = seed
        self.device = device
        self.nominal_bits = min(self.settings, key=lambda each: abs(each - bits))
        if abs(self.nominal_bits - bits) > _FAR:
            known = ", ".join(f"{each:.3g} ({s.label})" for each, s in self.settings.items())
            raise ConfigError(
                f"method {self.name} has no setting near {bits:g} bits, only {known}"
            )
        self.setting = self.settings[self.nominal_bits]

    @abstractmethod
    def quantise(
        self, layers: list[LayerWeight], H: Float[Tensor, "n n"] | None
    ) -> list[Quantised]:
        """Quantise matrices that share their input.

        Args:
            layers: the matrices, each [m, n].
            H: Hessian of their common input; None without calibration.
        """

    def prepare(
        self,
        model: nn.Module,
        windows: Tensor | None,
        on_progress: Callable[[float, str], None] = lambda share, note: None,
    ) -> Prepared | None:
        """Change the model as a whole before its matrices are quantised one by one.

        Args:
            model: a causal language model of transformers, FP32; may be used up.
            windows: calibration tokens [windows, context], if there are any.
            on_progress: told which share of the work is done, and what was seen.

        Returns:
            What changed; None if the method takes models as they are.
        """
        return None

    def compress(
        self, layers: list[LayerWeight], H: Tensor | None, log2_gain: float, bank: TableBank
    ) -> list[CompressedLayer]:
        """See `LayerMethod.compress`; neither gain nor bank play a part."""
        factor = None if H is None else ldl(H)
        results = []
        for layer, found in zip(layers, self.quantise(layers, H), strict=True):
            W, E = layer.W, layer.W - found.weight
            results.append(
                CompressedLayer(
                    name=layer.name,
                    data=_pack(found, transposed=layer.transposed),
                    errors=measure(W, E, H, factor),
                    by_importance=None if H is None else by_importance(W, E, H.diagonal()),
                )
            )
        return results

    def estimate(
        self, layer: LayerWeight, importance: Importance | None, log2_gain: float
    ) -> float:
        """See `LayerMethod.estimate`: the rate is what it is."""
        return self.nominal_bits

    def restore(self, data: bytes, bank: TableBank) -> Tensor:
        """See `LayerMethod.restore`."""
        return unpack(data).weight


def _pack(found: Quantised, *, transposed: bool) -> bytes:
    weight = found.weight.T if transposed else found.weight
    return save({_KEY: weight.contiguous()}, {"budget": json.dumps(asdict(found.budget))})


def unpack(data: bytes) -> Quantised:
    """What a dense method kept of a matrix, the weight as the checkpoint holds it."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return Quantised(load(data)[_KEY], BitBudget(**json.loads(metadata["budget"])))


def grouped_budget(
    m: int, n: int, bits: int, *, group: int, scale_bits: int = 16, zero_bits: int = 0
) -> BitBudget:
    """Codes of so many bits, and for every group of a row a scale and a zero point.

    Args:
        m: rows.
        n: columns.
        bits: of a code.
        group: neighbours in a row that share a scale.
        scale_bits: of a scale.
        zero_bits: of a zero point; 0 if there is none.

    Example:
        >>> budget = grouped_budget(4096, 4096, 4, group=128, zero_bits=4)
        >>> 8 * budget.total / 4096**2
        4.15625
    """
    groups = m * -(-n // group)
    return BitBudget(
        payload=-(-m * n * bits // 8), scales=-(-groups * (scale_bits + zero_bits) // 8)
    )
