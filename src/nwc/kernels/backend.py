"""Which kernel codes tiles: compiled C if it was built, numba without it, the oracle on request.

All give the same bytes and symbols; the choice is speed only. Encoding has no C: its time goes
elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from nwc.coding import tiling
from nwc.errors import ConfigError
from nwc.kernels import native_library, rans_native, rans_numba

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DECODERS: dict[str, Callable[..., NDArray[np.int16]]] = {
    "native": rans_native.decode_tile,
    "numba": rans_numba.decode_tile,
    "numpy": tiling.decode_tile,
}
_ENCODERS: dict[str, Callable[..., tuple[NDArray[np.uint16], NDArray[np.uint32]]]] = {
    "native": rans_numba.encode_tile,
    "numba": rans_numba.encode_tile,
    "numpy": tiling.encode_tile,
}


def backend() -> str:
    """Name of the backend: the environment variable NWC_BACKEND, or the fastest there is.

    Raises:
        ConfigError: the variable names none, or one that is not there.
    """
    name = os.environ.get("NWC_BACKEND")
    if name is None:
        return "native" if native_library.available() else "numba"
    if name not in _DECODERS:
        raise ConfigError(f"NWC_BACKEND is {name!r}, wanted one of {sorted(_DECODERS)}")
    if name == "native":
        native_library.library()  # says why if it is not there
    return name


def decode_tile(
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    classes: tiling.Classes,
    tables: tiling.DecodingTables,
) -> NDArray[np.int16]:
    """`tiling.TileDecoder` of the chosen backend."""
    return _DECODERS[backend()](words, states, classes, tables)


def encode_tile(
    integers: NDArray[np.int16], classes: tiling.Classes, tables: tiling.EncodingTables
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """`tiling.TileEncoder` of the chosen backend."""
    return _ENCODERS[backend()](integers, classes, tables)
