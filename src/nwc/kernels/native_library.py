"""The compiled kernels of `native/`: an optional shared library, loaded with ctypes.

A call through ctypes gives up the interpreter lock, so that tiles decode in parallel threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from nwc.errors import ConfigError
from nwc.kernels.native.compile import LIBRARY

VERSION = 2
LEVELS = ("plain", "avx2", "avx512")
"""Instruction sets, by the numbers that the library gives them; each holds those before it."""


class Tables(ctypes.Structure):
    """`nwc_tables` of nwc.h."""

    _fields_ = (
        ("entries", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("classes", ctypes.c_int32),
        ("states", ctypes.c_int32),
        ("on_parity", ctypes.c_int32),
        ("on_bit", ctypes.c_int32),
    )


class Synthesis(ctypes.Structure):
    """`nwc_synthesis` of nwc.h."""

    _fields_ = (
        ("integers", ctypes.c_void_p),
        ("column_classes", ctypes.c_void_p),
        ("row_classes", ctypes.c_void_p),
        ("column_scales", ctypes.c_void_p),
        ("row_scales", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("first", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("by_column", ctypes.c_int32),
    )


class Matrix(ctypes.Structure):
    """`nwc_matrix` of nwc.h."""

    _fields_ = (
        ("tables", ctypes.c_void_p),
        ("synthesis", ctypes.c_void_p),
        ("words", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("patches", ctypes.c_int64),
        ("chunks", ctypes.c_int64),
        ("tile_columns", ctypes.c_int64),
        ("tile_chunks", ctypes.c_int64),
    )


class Loaded(NamedTuple):
    """The library, or why there is none.

    Args:
        library: its functions; None if it cannot be used.
        reason: why not.
        best: number of the best instruction set of this processor.
    """

    library: ctypes.CDLL | None
    reason: str = ""
    best: int = 0


@cache
def load() -> Loaded:
    """Load the library once."""
    if not LIBRARY.exists():
        return Loaded(None, f"{LIBRARY.name} was not built when nwc was installed")
    try:
        library = ctypes.CDLL(str(LIBRARY))
        version = library.nwc_version()
    except (OSError, AttributeError) as error:
        return Loaded(None, f"{LIBRARY.name} cannot be loaded ({error})")
    if version != VERSION:
        return Loaded(None, f"{LIBRARY.name} has version {version}, this nwc wants {VERSION}")
    void, number = ctypes.c_void_p, ctypes.c_int64
    library.nwc_fill_entries.argtypes = [void, void, number, void]
    library.nwc_fill_entries.restype = None
    library.nwc_decode.argtypes = [ctypes.c_int, void, void, number, void, number]
    library.nwc_prepare_output.argtypes = [void, ctypes.c_size_t]
    library.nwc_prepare_output.restype = None
    library.nwc_synthesise.argtypes = [ctypes.c_int, void]
    library.nwc_bands.argtypes = [void]
    library.nwc_bands.restype = number
    library.nwc_scratch_size.argtypes = [void]
    library.nwc_scratch_size.restype = number
    library.nwc_restore.argtypes = [ctypes.c_int, void, void, void]
    library.nwc_restore.restype = number
    return Loaded(library, best=library.nwc_level())


def available() -> bool:
    """Whether the compiled kernels can be used here."""
    return load().library is not None


def library() -> ctypes.CDLL:
    """The functions.

    Raises:
        ConfigError: the library was not built, or cannot be used.
    """
    loaded = load()
    if loaded.library is None:
        raise ConfigError(
            f"the compiled kernels cannot be used: {loaded.reason}; install nwc again where a C "
            "compiler is on the path, or choose another backend (NWC_BACKEND=numba)"
        )
    return loaded.library


def levels() -> tuple[str, ...]:
    """Names of the instruction sets that this processor has, the best one last."""
    return LEVELS[: load().best + 1]


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Use an instruction set, as if NWC_NATIVE_LEVEL named it."""
    before = os.environ.get("NWC_NATIVE_LEVEL")
    os.environ["NWC_NATIVE_LEVEL"] = name
    try:
        yield
    finally:
        del os.environ["NWC_NATIVE_LEVEL"]
        if before is not None:
            os.environ["NWC_NATIVE_LEVEL"] = before


def level() -> int:
    """Number of the instruction set in use: that of NWC_NATIVE_LEVEL, or the best.

    Raises:
        ConfigError: the variable names none that this processor has.
    """
    name = os.environ.get("NWC_NATIVE_LEVEL")
    if name is None:
        return load().best
    if name not in levels():
        raise ConfigError(
            f"NWC_NATIVE_LEVEL is {name!r}, wanted one of {list(levels())}, which this processor "
            "has, or nothing for the best"
        )
    return LEVELS.index(name)
