"""The page as a browser shows it; needs Chromium, see `browser` in conftest.

With NWC_SCREENSHOTS=FOLDER the screenshots stay there, to be looked at.
"""

import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from nwc.reporting.html import render_html

PAGES = {
    "calibrated": {"warnings": ["12 columns of the calibration text are dead"]},
    "data-free": {"calibrated": False, "recovery": False},
    "deep": {"blocks": 80, "width": 1024},
    "experts": {"blocks": 16, "experts": 208},
}
LONG = {
    "name": "a-very-long-name-without-a-single-space-in-it/" * 4,
    "architecture": "A" * 90,
    "license": "l" * 90,
}
# Boxes of everything drawn: of no size if a chart is empty.
DRAWN = """[...document.querySelectorAll('svg.plot, svg.bar, table.heat')].map(chart => ({
  what: chart.getAttribute('aria-label') || 'heat map',
  width: chart.getBoundingClientRect().width,
  height: chart.getBoundingClientRect().height,
  shapes: [...chart.querySelectorAll('circle, rect, path, tbody td')].filter(shape => {
    const box = shape.getBoundingClientRect();
    return box.width > 0 && box.height > 0;
  }).length,
}))"""
# What sticks out of the window and does not lie in a box that scrolls or clips.
OVERFLOW = """[...document.querySelectorAll('main *')].filter(e =>
  e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest('.scroll, pre, svg.in')
).map(e => e.tagName + ' ' + (e.textContent || '').slice(0, 40))"""


@pytest.fixture
def screenshots(tmp_path):
    folder = Path(os.environ.get("NWC_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check(browser, page, width, scheme="light"):
    """No request but the page's own, no message, no overflow."""
    browser.open(page, width, scheme)
    asked = [e["request"]["url"] for e in browser.named("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    said = browser.named("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert said == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(OVERFLOW) == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_page(browser, make_report, tmp_path, screenshots, name, width):
    page = tmp_path / f"{name}.html"
    page.write_text(render_html(make_report(**PAGES[name])), encoding="utf-8")
    backgrounds = []
    for scheme in ("light", "dark"):
        check(browser, page, width, scheme)
        charts = browser.ask(DRAWN)
        assert len(charts) == (4 if name == "data-free" else 7)
        for chart in charts:
            assert chart["width"] > 200, chart
            assert chart["height"] > 20, chart
            assert chart["shapes"] >= 4, chart
        shot = screenshots / f"{name}-{width}-{scheme}.png"
        browser.screenshot(shot)
        with Image.open(io.BytesIO(shot.read_bytes())) as image:
            assert image.width == width
            backgrounds.append(sum(image.convert("RGB").getpixel((2, 2))))
            assert len(image.convert("RGB").getcolors(1 << 24)) > 100
    assert backgrounds[0] > 600 > 150 > backgrounds[1]


@pytest.mark.parametrize("width", [320, 400, 1400])
def test_long_names_do_not_overflow(browser, make_report, tmp_path, width):
    report = make_report(2, model=LONG, warnings=["w" * 300], hash="f" * 300)
    report["command"] = "nwc compress " + "m" * 300 + " --output OUT"
    report["versions"]["v" * 200] = "1" * 200
    for tensor in report["tensors"]:
        tensor["kind"] += "k" * 200
        tensor["name"] *= 5
    report["kept"][0]["why"] = "because " + "y" * 200
    page = tmp_path / "long.html"
    page.write_text(render_html(report), encoding="utf-8")
    check(browser, page, width)


def test_hostile_text_runs_nothing(browser, make_report, tmp_path):
    hostile = (
        "\"></title></style><script>document.title='run'</script><img src=http://evil.invalid/>"
    )
    report = make_report(2, warnings=[hostile], method=hostile, command=hostile)
    report["model"]["name"] = hostile
    for tensor in report["tensors"]:
        tensor["name"] = tensor["kind"] = hostile
    page = tmp_path / "hostile.html"
    page.write_text(render_html(report), encoding="utf-8")
    check(browser, page, 400)
    assert browser.ask("document.title") == f"{hostile}: nwc report"
    assert browser.ask("document.images.length") == 0


def test_legend_dims_the_others(browser, make_report, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render_html(make_report()), encoding="utf-8")
    browser.open(page, 1400)
    browser.ask("document.querySelector('.legend .k2').scrollIntoView()")
    place = browser.ask(
        "(b => [b.x + 5, b.y + 5])(document.querySelector('.legend .k2').getBoundingClientRect())"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    opacity = "getComputedStyle(document.querySelector('.dot.c%d')).opacity"
    assert float(browser.ask(opacity % 1)) < 0.2
    assert float(browser.ask(opacity % 2)) == 1


def test_text_is_readable_against_its_ground(browser, make_report, tmp_path):
    """Every colour of the heat map keeps a contrast of 3, and the muted text one of 4.5."""
    page = tmp_path / "page.html"
    page.write_text(render_html(make_report()), encoding="utf-8")
    for scheme in ("light", "dark"):
        browser.open(page, 1400, scheme)
        pairs = browser.ask(
            """[...document.querySelectorAll('.heat td')].map(e => {
                 const style = getComputedStyle(e), canvas = new OffscreenCanvas(1, 1);
                 const dot = canvas.getContext('2d', {willReadFrequently: true});
                 return [style.color, style.backgroundColor].map(colour => {
                   dot.fillStyle = colour;
                   dot.fillRect(0, 0, 1, 1);
                   return [...dot.getImageData(0, 0, 1, 1).data];
                 });
               })"""
        )
        assert min(_contrast(*pair) for pair in pairs) > 3
        muted, ground = browser.ask(
            """[getComputedStyle(document.querySelector('.note')).color,
                getComputedStyle(document.querySelector('section')).backgroundColor]"""
        )
        rgb = [[int(n) for n in re.findall(r"\d+", colour)[:3]] for colour in (muted, ground)]
        assert _contrast(*rgb) > 4.5


def _contrast(one, other):
    """Contrast ratio of WCAG 2."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    parts = [c / 255 for c in colour[:3]]
    r, g, b = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
