"""Axes, plots and bars as numbers and as well-formed SVG."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nwc.reporting import charts
from nwc.reporting.charts import Line, Part, Point, Series

AMOUNTS = st.lists(st.floats(0, 1e18, allow_subnormal=True), min_size=1, max_size=9)


@given(AMOUNTS, st.booleans())
def test_linear_axes_hold_their_values(values, zero):
    found = charts.axis("bits", values, zero=zero)
    assert all(-1e-9 <= found.at(v) <= 1 + 1e-9 for v in (*values, *found.ticks))
    assert 1 <= len(found.ticks) <= 8


@given(st.lists(st.floats(1e-30, 1e18), min_size=1, max_size=9))
def test_log_axes_hold_their_values(values):
    found = charts.log_axis("error", values)
    assert all(-1e-9 <= found.at(v) <= 1 + 1e-9 for v in (*values, *found.ticks))
    assert found.ticks


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=9))
def test_axes_of_whole_numbers(values):
    found = charts.whole_axis("block", values)
    assert all(0 <= found.at(v) <= 1 for v in values)
    assert len(found.ticks) <= 10
    assert all(tick == int(tick) for tick in found.ticks)


def test_ticks_are_round():
    found = charts.axis("bits", [4.17, 5.11])
    assert [found.form(t) for t in found.ticks] == ["4.2", "4.4", "4.6", "4.8", "5.0"]
    assert [f"{t:g}" for t in charts.log_axis("error", [0.001, 0.03]).ticks] == [
        "0.001", "0.002", "0.005", "0.01", "0.02",
    ]  # fmt: skip
    below = charts.axis("dB", [-30.0, -20.0])
    assert below.form(-25.0) == "\N{MINUS SIGN}25"


@pytest.mark.parametrize("dots", [1, 30, 1000])
def test_plot(dots):
    points = [Point(x=i, y=i % 7, title=f"<{i}> & \x00", low=0, high=6) for i in range(dots)]
    x, y = charts.whole_axis("<x>", range(dots)), charts.axis('"y"', [0, 6])
    lines = [Line(style="bound", start=(0, 0), end=(dots, 6))]
    series = [Series(style="c0", points=points, joined=True)]
    root = ET.fromstring(charts.plot('a "b" <c>', x, y, series, lines))
    assert root.get("aria-label") == 'a "b" <c>'
    texts = [element.text for element in root.iter("text")]
    assert {"<x>", '"y"'} <= set(texts)
    titles = [element.text for element in root.iter("title")]
    if dots <= 400:
        assert titles == [f"<{i}> & \\x00" for i in range(dots)]
    else:
        path = next(p for p in root.iter("path") if p.get("class") == "dots c0")
        assert path.get("d").count("M") == dots
        assert not titles


def test_bar():
    parts = [
        Part(title="a", label="much", amount=6, style="payload"),
        Part(title="b", label="little", amount=1, style="kept"),
    ]
    root = ET.fromstring(charts.bar("bytes", parts, 14, "half <saved>"))
    rects = [(r.get("x"), r.get("width")) for r in root.iter("rect")]
    assert rects == [("0.00%", "42.86%"), ("42.86%", "7.14%")]
    assert [t.text for t in root.iter("text")] == ["much", "half <saved>"]
    assert "saved" not in charts.bar("bytes", parts, 7, "saved")


def test_funnel():
    assert 'd="M250 0H500L1000 10H0Z"' in charts.funnel(0.25, 0.5)
