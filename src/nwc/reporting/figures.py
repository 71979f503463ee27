"""Each picture of the page: a chart, and the sentence that says what it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nwc.reporting import charts
from nwc.reporting.charts import Axis, Line, Part, Point, Series
from nwc.reporting.summary import (
    HeatRow,
    Kinds,
    Share,
    Tensor,
    bins,
    grouped,
    heat_rows,
    mean,
    overheads,
    shares,
)
from nwc.reporting.text import bits, decibel, figure, finite, known, percent, plural, size

DOTS = 400
"""More tensors than that are drawn as means over a block and kind."""
PLACES = 100
HEAT_ROWS = 80
STAGES = 120
"""More groups than that are not drawn: of every block the last."""
HEAT_LEVELS = 10

Stage = tuple[float, int, dict[str, Any]]
"""Place in the chart, block and group of one round of fine-tuning."""

TINY = 1e-30
"""Errors below it are none; a logarithmic scale ends here."""

SPACE_FILLING_LOSS_DB = 10 * math.log10(math.pi * math.e / 6)
"""Of uniform scalar quantisation with ideal entropy coding, at high rate: 1.53 dB."""


@dataclass(frozen=True)
class Picture:
    """A chart with the sentence that says what it shows."""

    chart: str
    says: str
    note: str = ""


@dataclass(frozen=True)
class ByteBars:
    """The folder beside its original, and the overhead enlarged."""

    chart: str
    zoom: str
    shares: list[Share]
    overheads: list[Share]
    total: float
    excess: float
    """Bytes that the parts have too many; positive only in a report that contradicts itself."""


def byte_bars(report: dict[str, Any]) -> ByteBars | None:
    """Where the bytes went; None if no size is known."""
    main, extra = shares(report), overheads(report)
    counted = sum(share.bytes for share in main)
    total = known(report["file_bytes"]) or counted
    if not counted:
        return None
    scale = max(known(report["original_bytes"]) or 0, total, counted)
    chart = charts.bar(
        f"{size(total)} by purpose, of {size(scale)}",
        [_part(s, counted) for s in main],
        scale,
        f"{size(scale - counted)} saved",
    )
    zoom = ""
    if extra:
        whole = sum(share.bytes for share in extra)
        before = sum(share.bytes for share in main[: _index(main, "overhead")])
        zoom = charts.funnel(before / scale, (before + whole) / scale) + charts.bar(
            f"overhead of {size(whole)} by purpose", [_part(s, whole) for s in extra], whole
        )
    return ByteBars(chart, zoom, main, extra, total, max(0.0, counted - total))


def _index(main: list[Share], name: str) -> int:
    return [share.name for share in main].index(name)


def _part(share: Share, whole: float) -> Part:
    title = f"{share.name}: {size(share.bytes)}, {percent(share.bytes / whole)}"
    return Part(title=title, label=size(share.bytes), amount=share.bytes, style=share.style)


def depth(report: dict[str, Any], kinds: Kinds) -> Picture | None:
    """Bits per tensor against depth; None if none is known."""
    everything = report["tensors"]
    tensors = [t for t in everything if known(t["bits_per_parameter"]) is not None]
    blocks = any(t["block"] is not None for t in tensors)
    if blocks:
        tensors = [t for t in tensors if t["block"] is not None]
        place = {id(t): t["block"] for t in tensors}
    else:
        order = bins(range(len(tensors)), PLACES)
        place = {id(t): order[i][0] for i, t in enumerate(tensors)}
    if not tensors:
        return None
    cells = grouped(tensors, lambda t: (kinds.of(t), place[id(t)]))
    points: dict[int, list[Point]] = {}
    for (kind, x), members in sorted(cells.items()):
        points.setdefault(kind, []).append(_depth_point(x, members))
    dots = [p for of_kind in points.values() for p in of_kind]
    overall = known(report["bits_per_parameter"].get("tensors"))
    x = charts.whole_axis("block" if blocks else "position in the file", [int(p.x) for p in dots])
    y = charts.axis(
        "bits per parameter",
        finite([*(p.low for p in dots), *(p.high for p in dots), overall]),
    )
    lines = []
    if overall is not None:
        lines = [Line(style="mean", start=(x.low, overall), end=(x.high, overall))]
    series = [Series(style=f"c{k}", points=of_kind, joined=True) for k, of_kind in points.items()]
    left = len(everything) - len(tensors)
    note = f"{plural(left, 'tensor')} outside the blocks not drawn." if left and blocks else ""
    if len(cells) < len(tensors):
        note = f"Dots are means over a block and kind, strokes reach from least to most. {note}"
    return Picture(charts.plot("bits per parameter by depth", x, y, series, lines),
                   _extremes(tensors), note)  # fmt: skip


def _depth_point(x: int, members: list[Tensor]) -> Point:
    values = [t["bits_per_parameter"] for t in members]
    y = mean(members, "bits_per_parameter") or 0.0
    title = members[0]["name"] if len(members) == 1 else plural(len(members), "tensor")
    return Point(x=x, y=y, title=f"{title}: {bits(y)} bits", low=min(values), high=max(values))


def _extremes(tensors: list[Tensor]) -> str:
    ordered = sorted(tensors, key=lambda t: t["bits_per_parameter"])
    least, most = ordered[0], ordered[-1]
    return (
        f"From {bits(least['bits_per_parameter'])} bits ({least['name']}) to "
        f"{bits(most['bits_per_parameter'])} ({most['name']})."
    )


def rate_distortion(tensors: list[Tensor], kinds: Kinds) -> Picture | None:
    """Relative error in dB against bits, with the Gaussian bound; None if nothing is known."""
    measured = [
        t
        for t in tensors
        if known(t["bits_per_parameter"]) is not None and known(t["relative_error"])
    ]
    if not measured:
        return None
    if len(measured) <= DOTS:
        groups = [[t] for t in measured]
    else:
        groups = list(grouped(measured, lambda t: (kinds.of(t), t["block"])).values())
    points: dict[int, list[Point]] = {}
    for members in groups:
        rate = mean(members, "bits_per_parameter") or 0.0
        error = mean(members, "relative_error")
        level = decibel(error) or 0.0
        title = members[0]["name"] if len(members) == 1 else plural(len(members), "tensor")
        shown = f"{title}: {bits(rate)} bits, {percent(error)}, {level:.1f} dB"
        points.setdefault(kinds.of(members[0]), []).append(Point(x=rate, y=level, title=shown))
    dots = [p for of_kind in points.values() for p in of_kind]
    rates, levels = [p.x for p in dots], [p.y for p in dots]
    x = charts.axis("bits per parameter of the tensor", rates)
    bound = [_bound(r) for r in (min(rates), max(rates))]
    scalar = [b + SPACE_FILLING_LOSS_DB for b in bound]
    y = charts.axis("relative error in dB", [*levels, *bound, *scalar])
    series = [Series(style=f"c{k}", points=of_kind) for k, of_kind in sorted(points.items())]
    gaps = sorted(p.y - _bound(p.x) for p in dots)
    middle = gaps[len(gaps) // 2]
    side = "above" if middle >= 0 else "below"
    note = "" if len(groups) == len(measured) else "Dots are means over a block and kind."
    left = len(tensors) - len(measured)
    if left:
        note = f"{plural(left, 'tensor')} without a measured error not drawn. {note}"
    return Picture(
        charts.plot(
            "relative error against bits", x, y, series,
            [_reference("bound", x, 0.0), _reference("scalar", x, SPACE_FILLING_LOSS_DB)],
        ),
        f"The median lies {abs(middle):.1f} dB {side} the Gaussian bound.",
        note,
    )  # fmt: skip


def _bound(rate: float) -> float:
    """Gaussian bound D = 2^-2R in dB."""
    return -20 * math.log10(2) * rate


def _reference(style: str, x: Axis, above: float) -> Line:
    return Line(
        style=style,
        start=(x.low, _bound(x.low) + above),
        end=(x.high, _bound(x.high) + above),
    )


@dataclass(frozen=True)
class Heat:
    """Relative error by decile of diag H; None is a cell that is not known."""

    by_kind: list[HeatRow]
    by_depth: list[HeatRow]
    low: float
    high: float
    says: str
    note: str

    def level(self, value: float | None) -> int | None:
        """Colour of a value, 0 to 9, equal ratios apart."""
        if value is None:
            return None
        if value <= self.low:
            return 0
        place = math.log(value / self.low) / math.log(self.high / self.low)
        return min(int(HEAT_LEVELS * place), HEAT_LEVELS - 1)


def heat(tensors: list[Tensor], kinds: Kinds) -> Heat | None:
    """Error against Hessian; None if it was not measured."""
    labels = kinds.labels
    by_kind = heat_rows(tensors, lambda t: (labels[kinds.of(t)], kinds.of(t)))
    in_block = [t for t in tensors if t["block"] is not None and t["error_by_importance"]]
    spans = bins((t["block"] for t in in_block), HEAT_ROWS)
    by_depth = heat_rows(
        sorted(in_block, key=lambda t: t["block"]), lambda t: (_span(spans[t["block"]]), None)
    )
    cells = [v for row in (*by_kind, *by_depth) for v in row.values if v and v > TINY]
    if not cells:
        return None
    low, high = min(cells), max(cells)
    if high < 2 * low:  # equal errors must not look different
        low, high = math.sqrt(low * high / 2), math.sqrt(low * high * 2)
    measured = sum(row.tensors for row in by_kind)
    left = len(tensors) - measured
    note = f"{plural(left, 'tensor')} without it not counted." if left else ""
    return Heat(by_kind, by_depth, low, high, _contrast(by_kind), note)


def _span(span: tuple[int, int]) -> str:
    first, last = span
    return f"{first}" if first == last else f"{first} to {last}"


def _contrast(rows: list[HeatRow]) -> str:
    """How the loudest tenth of the inputs compares with the quietest."""
    ends = []
    for column in (0, -1):
        known_rows = [(r.values[column], r.tensors) for r in rows if r.values[column] is not None]
        weight = sum(n for _, n in known_rows)
        ends.append(sum((v or 0.0) * n for v, n in known_rows) / weight if weight else None)
    if ends[0] is None or ends[1] is None:
        return ""
    return (
        f"On average {percent(ends[0])} in the columns with the quietest inputs and "
        f"{percent(ends[1])} in those with the loudest."
    )


@dataclass(frozen=True)
class Gains:
    """What recovery fine-tuning gained."""

    chart: str
    says: str
    note: str
    rows: list[dict[str, Any]]
    """Every group with its block, and its change where that is known."""


def gains(blocks: list[dict[str, Any]]) -> Gains | None:
    """Held-out error before and after fine-tuning; None if there was none."""
    rows = [
        {**group, "block": block["block"], "change": _change(group)}
        for block in blocks
        for group in block["groups"]
    ]
    if not rows:
        return None
    says = f"It helped after {sum(row['kept'] for row in rows):,} of {plural(len(rows), 'group')}."
    changes = [1 + row["change"] for row in rows if row["change"] is not None]
    if changes and min(changes) > 0:
        overall = math.exp(sum(map(math.log, changes)) / len(changes)) - 1
        word = "lower" if overall <= 0 else "higher"
        says += f" The error is {percent(abs(overall))} {word} each time (geometric mean)."
    stages = [
        (block["block"] + (i + 0.5) / len(block["groups"]) - 0.5, block["block"], group)
        for block in blocks
        for i, group in enumerate(block["groups"])
    ]
    note = "Within a block, groups stand from left to right in the order of their quantisation."
    if len(stages) > STAGES:
        stages = [(block, block, group) for (_, block, group) in _last_of_block(stages)]
        note = "Only the last group of every block is drawn: all of the block is quantised then."
    both = [s for s in stages if None not in (known(s[2]["before"]), known(s[2]["after"]))]
    return Gains(_dumbbells(both) if both else "", says, note, rows)


def _change(group: dict[str, Any]) -> float | None:
    before, after = known(group["before"]), known(group["after"])
    return after / before - 1 if before and after is not None else None


def _last_of_block(stages: list[Stage]) -> list[Stage]:
    return list({block: (x, block, group) for x, block, group in stages}.values())


def _dumbbells(stages: list[Stage]) -> str:
    values = [group[key] for _, _, group in stages for key in ("before", "after")]
    log = min(values) > TINY and max(values) > 5 * min(values)
    title = "relative squared error of the block's output"
    y = charts.log_axis(title, values) if log else charts.axis(title, values, zero=True)
    x = charts.whole_axis("block", [block for _, block, _ in stages])
    before, after = [], []
    trails: dict[int, list[Point]] = {}
    for place, block, group in stages:
        low, high = sorted((group["before"], group["after"]))
        shown = f"block {block}, {group['name']}: {figure(group['before'])} before, " + (
            f"{figure(group['after'])} after" if group["kept"] else "not kept"
        )
        before.append(Point(x=place, y=group["before"], title=shown, low=low, high=high))
        ends = [Point(x=place, y=group[key]) for key in ("before", "after")]
        trails.setdefault(block, []).extend(ends)
        if group["kept"]:
            after.append(Point(x=place, y=group["after"], title=shown))
    return charts.plot(
        "error of every block before and after fine-tuning", x, y,
        [
            *(Series(style="trail", points=p, joined=True, dots=False) for p in trails.values()),
            Series(style="before", points=before),
            Series(style="after", points=after),
        ],
    )  # fmt: skip
