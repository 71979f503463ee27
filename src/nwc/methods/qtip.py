"""QTIP: trellis-coded quantisation after incoherence processing (Tseng et al., NeurIPS 2024).

Tiles of 16 x 16 weights are sequences of 256 along the bitshift trellis with states of 16 bits
(`quantizers.qtip`, Sec. 3); their paths are rings, found by two Viterbi searches (Algorithm 4), so
that a weight takes k bits and no more. Blocks of 16 columns have feedback.

`qtip` computes the value of every state (1MAD), which has the least error of the paper's codes at
every rate; `qtip_3inst` computes it otherwise; `qtip_hyb` looks pairs up (HYB: Q = 9, V = 2), what
the authors ship for its speed on GPUs. Its 1024 pairs leave no less error at 6 bits than at 5, and
there it ends. A step of the search costs 2^16 states whatever k is (`kernels.bitshift_numba`), so
that 8 bits are no harder than 2. Tables are constants of the decoder and not counted.

The paper's rates are 2 to 4 bits; its fine-tuning is this project's recovery.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from nwc.methods.dense import Setting
from nwc.methods.incoherence import IncoherentMethod
from nwc.quantizers.qtip import hybrid, one_mad, quantise_rings, three_inst
from nwc.quantizers.vector import k_means

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

_SIDE = 16
_SPREAD = 1 / 0.9
"""Root mean square of a code for weights of 1, as in the authors' runs: feedback widens them."""

_PAIR_BITS = 9
_SAMPLES = 2**16


@cache
def gaussian_pairs(index_bits: int = _PAIR_BITS) -> Float32[np.ndarray, "entries 2"]:
    """Pairs for HYB: k-means of the unit normal, the sign of the first of each pair set apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SAMPLES, 2, generator=generator)
    x[:, 0].abs_()
    table: Float32[np.ndarray, "entries 2"] = k_means(x, x[: 1 << index_bits]).numpy()
    return table


@cache
def code_of(name: str) -> Float32[np.ndarray, "V states"]:
    """A code, its values of root mean square 1."""
    code = {"HYB": lambda: hybrid(gaussian_pairs()), "1MAD": one_mad, "3INST": three_inst}[name]()
    unit: Float32[np.ndarray, "V states"] = code / np.sqrt(np.square(code).mean())
    return unit


def _settings(code: str, bits: range) -> dict[float, Setting]:
    return {float(b): Setting(f"{code}, {b} bits", b) for b in bits}


class QTIP(IncoherentMethod):
    """See the module."""

    name = "qtip"
    code = "1MAD"
    tile = (_SIDE, _SIDE)
    settings: ClassVar = _settings("1MAD", range(2, 9))

    def quantise_gaussian(self, x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """See `IncoherentMethod.quantise_gaussian`."""
        code = code_of(self.code) * np.float32(_SPREAD)
        m, n = x.shape
        tiles = x.view(m // _SIDE, _SIDE, n // _SIDE, _SIDE).transpose(1, 2)
        found = quantise_rings(tiles.reshape(-1, _SIDE**2).numpy(), code, self.setting.bits)
        back = torch.from_numpy(found).view(m // _SIDE, n // _SIDE, _SIDE, _SIDE)
        return back.transpose(1, 2).reshape(m, n)


class QTIP3Inst(QTIP):
    """QTIP with a code of three instructions."""

    name = "qtip_3inst"
    code = "3INST"
    settings: ClassVar = _settings("3INST", range(2, 9))


class QTIPHybrid(QTIP):
    """QTIP with a small table."""

    name = "qtip_hyb"
    code = "HYB"
    settings: ClassVar = _settings("HYB", range(2, 6))
