"""Small charts as inline SVG.

A plot has no viewBox: places are per cent of its frame, letters and dots are in pixels. So it is
as wide as the page lets it be, and its letters stay readable. Curves lie in an inner picture of
1000 by 1000 that is stretched over the frame; their strokes are not. Colours are CSS classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from nwc.reporting.text import figure, plain

_DOTS_WITH_TITLE = 400


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Numbers along one side.

    Args:
        title: quantity and unit.
        low, high: what its ends stand for.
        ticks: places to mark.
        log: whether equal steps are equal ratios; then low is positive.
        form: how a tick is written.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False
    form: Callable[[float], str] = field(default=figure)

    def at(self, value: float) -> float:
        """Place of a value, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(title: str, values: Sequence[float], *, zero: bool = False) -> Axis:
    """A linear axis around values, at least one.

    Args:
        title: quantity and unit.
        values: what must fit.
        zero: begin at zero.
    """
    low, high = (0.0 if zero else min(values)), max(values)
    room = max(0.08 * (high - low), 0.001 * abs(high)) or 1.0
    low, high = (low if zero else low - room), high + room
    step, digits = _step((high - low) / 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return Axis(
        title=title, low=low, high=high, ticks=ticks,
        form=lambda v: f"{v:.{digits}f}".replace("-", "\N{MINUS SIGN}"),
    )  # fmt: skip


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis around positive values, at least one."""
    low, high = min(values) / 1.15, max(values) * 1.15
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 1e3 else (1, 2, 5)
    ticks = [k * 10.0**e for e in exponents for k in steps if low <= k * 10.0**e <= high]
    return Axis(
        title=title, low=low, high=high, ticks=ticks or [min(values)], log=True,
        form=lambda v: figure(v, 1) if ticks else figure(v, 2),
    )  # fmt: skip


def whole_axis(title: str, values: Sequence[int]) -> Axis:
    """An axis of whole numbers such as block numbers."""
    low, high = min(values), max(values)
    step = max(1, math.ceil(_step((high - low) / 8)[0]))
    ticks = range(-(-low // step) * step, high + 1, step)
    room = max(0.02 * (high - low), 0.5, 1e-9 * high)
    return Axis(
        title=title, low=low - room, high=high + room, ticks=ticks, form=lambda v: f"{v:.0f}"
    )


def _step(rough: float) -> tuple[float, int]:
    """The round number at or above a step, and the decimals it takes."""
    if rough <= 0:
        return 1.0, 0
    exponent = math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        if factor * 10.0**exponent >= rough * 0.999:
            break
    exponent += factor == 10
    return (1 if factor == 10 else factor) * 10.0**exponent, max(0, -exponent)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A dot: where, what it is, and how far the numbers behind it spread."""

    x: float
    y: float
    title: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one colour.

    Args:
        style: CSS classes.
        points: in the order of x.
        joined: by a line.
        dots: whether to draw the points themselves.
    """

    style: str
    points: Sequence[Point]
    joined: bool = False
    dots: bool = True


@dataclass(frozen=True, kw_only=True)
class Line:
    """A reference line from one point to another."""

    style: str
    start: tuple[float, float]
    end: tuple[float, float]


def plot(
    name: str, x: Axis, y: Axis, series: Sequence[Series], lines: Sequence[Line] = ()
) -> Markup:
    """A plot of dots, curves and reference lines.

    Args:
        name: what it shows, for those who cannot see it.
        x: horizontal axis; every point lies within.
        y: vertical axis; every point lies within.
        series: the later cover the earlier.
        lines: reference lines, below all dots; what leaves the frame is cut off.
    """
    parts = [f'<svg class="plot" role="img" aria-label="{escape(plain(name))}">']
    parts += _frame(x, y)
    parts.append('<svg class="in" viewBox="0 0 1000 1000" preserveAspectRatio="none">')
    for line in lines:
        (x1, y1), (x2, y2) = line.start, line.end
        d = f"M{_k(x.at(x1))} {_k(1 - y.at(y1))}L{_k(x.at(x2))} {_k(1 - y.at(y2))}"
        parts.append(f'<path class="{line.style}" d="{d}"/>')
    for one in series:
        spread = "".join(
            f"M{_k(x.at(p.x))} {_k(1 - y.at(p.low))}V{_k(1 - y.at(p.high))}"
            for p in one.points
            if p.low is not None and p.high is not None and p.high > p.low
        )
        parts.append(f'<path class="spread {one.style}" d="{spread}"/>' if spread else "")
        if one.joined and len(one.points) > 1:
            curve = "L".join(f"{_k(x.at(p.x))} {_k(1 - y.at(p.y))}" for p in one.points)
            parts.append(f'<path class="curve {one.style}" d="M{curve}"/>')
    dotted = [one for one in series if one.dots]
    dots = sum(len(one.points) for one in dotted)
    many = dots > _DOTS_WITH_TITLE
    if many:
        parts += [_dots(one, x, y) for one in dotted]
    parts.append("</svg>")
    if not many:
        parts += [_dots_with_title(one, x, y, 3.5 if dots <= 100 else 2.5) for one in dotted]
    return Markup("".join([*parts, "</svg>"]))


def _frame(x: Axis, y: Axis) -> list[str]:
    grid = "".join(
        f'<line x2="100%" y1="{100 - _p(y.at(t)):g}%" y2="{100 - _p(y.at(t)):g}%"/>'
        for t in y.ticks
    ) + "".join(f'<line y2="100%" x1="{_p(x.at(t)):g}%" x2="{_p(x.at(t)):g}%"/>' for t in x.ticks)
    left = "".join(
        f'<text x="-8" y="{100 - _p(y.at(t)):g}%" dy=".34em">{y.form(t)}</text>' for t in y.ticks
    )
    below = "".join(
        f'<text x="{_p(x.at(t)):g}%" y="100%" dy="18">{x.form(t)}</text>' for t in x.ticks
    )
    return [
        f'<g class="grid">{grid}</g><g class="left">{left}</g><g class="below">{below}',
        f'<text class="axis" x="50%" y="100%" dy="37">{escape(x.title)}</text></g>',
        f'<text class="axis" x="-38" y="-12">{escape(y.title)}</text>',
    ]


def _dots(one: Series, x: Axis, y: Axis) -> str:
    d = "".join(f"M{_k(x.at(p.x))} {_k(1 - y.at(p.y))}h.1" for p in one.points)
    return f'<path class="dots {one.style}" d="{d}"/>'


def _dots_with_title(one: Series, x: Axis, y: Axis, radius: float) -> str:
    circles = "".join(
        f'<circle cx="{_p(x.at(p.x)):g}%" cy="{100 - _p(y.at(p.y)):g}%" r="{radius}">'
        f"<title>{escape(plain(p.title))}</title></circle>"
        for p in one.points
    )
    return f'<g class="dot {one.style}">{circles}</g>'


def _k(place: float) -> int:
    """A place in the inner picture."""
    return round(1000 * place)


def _p(place: float) -> float:
    """A place in per cent of the frame."""
    return round(100 * place, 1)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a stacked bar."""

    title: str
    label: str
    amount: float
    style: str


def bar(name: str, parts: Sequence[Part], whole: float, rest: str = "") -> Markup:
    """A stacked bar; a piece of a fifth or more bears its label.

    Args:
        name: what it shows, for those who cannot see it.
        parts: from left to right.
        whole: what the full width stands for.
        rest: says what is not filled.
    """
    out = [f'<svg class="bar" role="img" aria-label="{escape(plain(name))}">']
    start = 0.0
    for part in parts:
        width = 100 * part.amount / whole
        out.append(
            f'<rect class="{part.style}" x="{start:.2f}%" width="{width:.2f}%" height="100%">'
            f"<title>{escape(plain(part.title))}</title></rect>"
        )
        if width >= 20:
            middle, label = start + width / 2, escape(plain(part.label))
            out.append(f'<text x="{middle:.2f}%" y="50%" dy=".35em">{label}</text>')
        start += width
    if rest and start <= 70:
        label = escape(plain(rest))
        out.append(f'<text class="left" x="100%" dx="-10" y="50%" dy=".35em">{label}</text>')
    return Markup("".join([*out, "</svg>"]))


def funnel(start: float, end: float) -> Markup:
    """What joins a piece of one bar, from start to end of its width, to the whole bar below."""
    a, b = _k(start), _k(end)
    return Markup(
        '<svg class="funnel" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="M{a} 0H{b}L1000 10H0Z"/></svg>'
    )
