"""Numbers and foreign text as people read them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

UNKNOWN = "–"  # noqa: RUF001  (an en dash in a table cell)

# Control, format, surrogate and unassigned characters, line and paragraph separators: they hide,
# reverse or break a line, and some cannot be written to a file at all.
_UNSAFE = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}


def plain(text: str, keep: str = "") -> str:
    r"""Text on one line in which every character shows; others become escapes such as ``\n``.

    Args:
        text: of unknown origin.
        keep: characters to leave alone all the same.

    Example:
        >>> plain("two\nlines")
        'two\\nlines'
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _UNSAFE and c not in keep
        else c
        for c in text
    )


def known(value: float | None) -> float | None:
    """The number, or None where it is unknown or not finite."""
    return None if value is None or not math.isfinite(value) else value


def finite(values: Iterable[float | None]) -> list[float]:
    """Those numbers that are known."""
    return [v for v in map(known, values) if v is not None]


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits.

    Example:
        >>> figure(0.0123456), figure(4.5), figure(8.5e-06), figure(131072)
        ('0.0123', '4.50', '8.50e-6', '131,072')
    """
    value = known(value)
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size >= 10**digits and size < 1e15:
        return f"{value:,.0f}"
    if value and not 1e-4 <= size < 1e15:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    places = digits - 1 - (math.floor(math.log10(size)) if value else 0)
    return f"{value:.{max(places, 0)}f}"


def count(value: float | None) -> str:
    """A whole number with separators."""
    value = known(value)
    return UNKNOWN if value is None else f"{value:,.0f}"


def bits(value: float | None) -> str:
    """Bits per parameter."""
    value = known(value)
    return UNKNOWN if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction in per cent.

    Example:
        >>> percent(0.0405), percent(0.00001)
        ('4.05 %', '0.00100 %')
    """
    value = known(value)
    return UNKNOWN if value is None else f"{figure(100 * value)} %"


def share(value: float) -> str:
    """A part of a whole in per cent.

    Example:
        >>> share(0.0405), share(0.00001)
        ('4.05 %', '< 0.01 %')
    """
    return "< 0.01 %" if 0 < value < 0.00005 else f"{100 * value:.2f} %"


def change(value: float | None) -> str:
    """A relative change in per cent, with its sign.

    Example:
        >>> change(0.25), change(0.0)
        ('+25.0 %', '0.00 %')
    """
    value = known(value)
    if not value:
        return percent(value)
    return ("+" if value > 0 else "\N{MINUS SIGN}") + percent(abs(value))


def decibel(relative_error: float | None) -> float | None:
    """Relative error |E|_F / |W|_F as a level; None for none at all, whose level has no end.

    Example:
        >>> decibel(0.1), decibel(0.0)
        (-20.0, None)
    """
    value = known(relative_error)
    return 20 * math.log10(value) if value else None


def size(value: float | None) -> str:
    """Bytes in decimal units.

    Example:
        >>> size(8_200_000), size(999)
        ('8.20 MB', '999 bytes')
    """
    value = known(value)
    if value is None:
        return UNKNOWN
    if value < 1000:
        return f"{value:.0f} bytes"
    for unit, scale in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        # 999.5 kB would be rounded to 1,000 kB
        if value < 999.5 * scale or unit == "TB":
            break
    return f"{figure(value / scale)} {unit}"


def magnitude(value: float | None) -> str:
    """A count of parameters.

    Example:
        >>> magnitude(5_900_000), magnitude(70_600_000_000), magnitude(12)
        ('5.90 M', '70.6 B', '12')
    """
    value = known(value)
    if value is None or value < 1000:
        return count(value)
    for unit, scale in (("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
        if value < 999.5 * scale or unit == "T":
            break
    return f"{figure(value / scale)} {unit}"


def plural(number: int, one: str, many: str = "") -> str:
    """A counted noun.

    Example:
        >>> plural(1, "tensor"), plural(42, "tensor"), plural(2, "entry", "entries")
        ('1 tensor', '42 tensors', '2 entries')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
