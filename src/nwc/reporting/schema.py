"""What a report must hold.

A report is what one compression has to say for itself: a JSON object, written as report.json into
the compressed folder. Every number may be null where it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nwc.errors import FormatError

Check = Callable[[Any, str], None]

DECILES = 10
LARGEST = 2**63
"""Beyond every size that a file can have."""


def check_report(report: object, where: str = "the report") -> dict[str, Any]:
    """The report, if it has every part in the right kind; parts it has besides do not matter.

    Args:
        report: parsed JSON.
        where: it is from, for the message.

    Raises:
        FormatError: a part is missing or of the wrong kind.
    """
    _REPORT(report, where)
    assert isinstance(report, dict)
    return report


def _fail(value: object, where: str, wanted: str) -> FormatError:
    shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return FormatError(f"{where} is {shown}, wanted {wanted}; make it again with nwc compress")


def _text(value: object, where: str) -> None:
    if not isinstance(value, str):
        raise _fail(value, where, "text")


def _flag(value: object, where: str) -> None:
    if not isinstance(value, bool):
        raise _fail(value, where, "true or false")


def _whole(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise _fail(value, where, "a whole number from 0 to 2^63 - 1")


def _real(value: object, where: str) -> None:
    # NaN and infinity pass: they read as unknown
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or LARGEST <= abs(value) < float("inf")
    ):
        raise _fail(value, where, "a number of less than 2^63")


def _amount(value: object, where: str) -> None:
    _real(value, where)
    if isinstance(value, int | float) and value < 0:
        raise _fail(value, where, "a number that is not negative")


def _one_of(*names: str) -> Check:
    def check(value: object, where: str) -> None:
        if value not in names:
            raise _fail(value, where, " or ".join(names))

    return check


def _maybe(inner: Check) -> Check:
    def check(value: object, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def _many(inner: Check, length: int | None = None) -> Check:
    def check(value: object, where: str) -> None:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise _fail(value, where, "a list" if length is None else f"a list of {length}")
        for i, item in enumerate(value):
            inner(item, f"{where}[{i}]")

    return check


def _each(inner: Check) -> Check:
    """An object with any keys and one kind of value."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _fail(value, where, "an object")
        for key, item in value.items():
            _text(key, f"a key of {where}")
            inner(item, f"{where}: {key[:60]}")

    return check


def _object(besides: Check | None = None, **fields: Check) -> Check:
    """An object with these fields; all that it holds passes `besides`."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _fail(value, where, "an object")
        missing = [name for name in fields if name not in value]
        if missing:
            raise FormatError(
                f"{where} lacks {', '.join(missing)}; make it again with nwc compress"
            )
        for name, inner in fields.items():
            inner(value[name], f"{where}: {name}")
        if besides is not None:
            besides(value, where)

    return check


_TENSOR = _object(
    name=_text,
    block=_maybe(_whole),
    kind=_maybe(_text),
    shape=_many(_whole),
    bits_per_parameter=_maybe(_amount),
    bytes=_maybe(_whole),
    relative_error=_maybe(_amount),
    hessian_error=_maybe(_amount),
    tokens=_maybe(_whole),
    damping=_maybe(_amount),
    log2_gain=_maybe(_real),
    error_by_importance=_maybe(_many(_maybe(_amount), DECILES)),
)

_GROUP = _object(
    name=_text,
    before=_maybe(_amount),
    after=_maybe(_amount),
    steps=_maybe(_whole),
    kept=_flag,
    note=_maybe(_text),
)

_REPORT = _object(
    version=_text,
    nwc=_text,
    command=_maybe(_text),
    versions=_each(_maybe(_text)),
    model=_object(name=_text, architecture=_maybe(_text), license=_maybe(_text)),
    method=_text,
    preset=_maybe(_text),
    target_bits=_maybe(_amount),
    target=_maybe(_one_of("tensors", "file")),
    calibrated=_flag,
    calibration=_maybe(
        _object(source=_maybe(_text), tokens=_maybe(_whole), context=_maybe(_whole))
    ),
    recovery=_maybe(_flag),
    features=_maybe(_text),
    hash=_maybe(_text),
    original_bytes=_maybe(_whole),
    file_bytes=_maybe(_whole),
    compressed_parameters=_maybe(_whole),
    kept_parameters=_maybe(_whole),
    bits_per_parameter=_object(
        _each(_maybe(_amount)), tensors=_maybe(_amount), file=_maybe(_amount)
    ),
    tensors=_many(_TENSOR),
    blocks=_many(_object(block=_whole, groups=_many(_GROUP))),
    kept=_many(
        _object(
            name=_text,
            shape=_many(_whole),
            dtype=_maybe(_text),
            bytes=_maybe(_whole),
            why=_maybe(_text),
        )
    ),
    warnings=_many(_text),
)
