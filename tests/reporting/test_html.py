"""The page holds what the report says, whatever it says, and stays small."""

from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.reporting.html import ROWS, render_html

HOSTILE = [
    '"><script>alert(1)</script>',
    "</style></title><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "a|b\n`c`",
    "\u202egnp.exe",
    "half \ud800 a pair",
    "' onmouseover='alert(1)",
    "\x00\x1b[31m",
]
# Options of a command and dots of a name get tags of ours.
FREE = Counter(span=999, wbr=999)
ANY_TEXT = st.text(st.characters(codec=None), max_size=40)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = Counter(), Counter(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def inject(report, text):
    """Put a text everywhere a report has text from outside."""
    report["model"] = {"name": text, "architecture": text, "license": text}
    report["command"] = report["method"] = report["preset"] = report["hash"] = text
    report["features"] = report["nwc"] = text
    report["versions"] = {text: text}
    report["warnings"] = [text]
    report["bits_per_parameter"] |= {"x" + text: 0.1}
    if report["calibration"]:
        report["calibration"]["source"] = text
    for row in (*report["tensors"], *report["kept"]):
        row["name"] = text
    for tensor in report["tensors"]:
        tensor["kind"] = "k" + text
    for row in report["kept"]:
        row["why"] = row["dtype"] = text
    for block in report["blocks"]:
        for group in block["groups"]:
            group["name"] = group["note"] = text
    return report


def test_figures_and_names(make_report):
    report = make_report(warnings=["12 columns are dead"])
    page = Page(render_html(report)).text
    for wanted in (
        "books-llama",
        "LlamaForCausalLM",
        "4.500",
        "6.78 MB",
        "2.45×",  # noqa: RUF001
        report["hash"],
        report["command"],
        "12 columns are dead",
        "131,072 tokens in windows of 256",
        "model.layers.5.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "embedding or head",
        "did not help",
        "2.13.0",
    ):
        assert wanted in page, wanted


def test_data_free(make_report):
    page = Page(render_html(make_report(calibrated=False, recovery=False))).text
    assert "without calibration text there is no Hessian" in page
    assert "Recovery was off" in page
    assert "Damping" not in page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text(make_report, hostile):
    benign = Page(render_html(inject(make_report(2), "name")))
    text = render_html(inject(make_report(2), hostile))
    text.encode("utf-8")
    page = Page(text)
    assert page.tags | FREE == benign.tags | FREE
    assert page.attributes == benign.attributes
    assert "script" not in page.tags


@given(text=ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_any_text_stays_text(make_report, text):
    page = Page(render_html(inject(make_report(1), text)))
    benign = Page(render_html(inject(make_report(1), text and "name")))
    assert page.tags | FREE == benign.tags | FREE
    assert page.attributes == benign.attributes


def test_nothing_is_fetched_or_run(make_report):
    text = render_html(make_report())
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text
    assert Page(text).tags["script"] == 0


def test_size(make_report):
    assert len(render_html(make_report()).encode()) < 60_000


def test_size_of_large_models(make_report):
    text = render_html(make_report(80, width=1024))
    assert len(text) < 250_000
    assert f"The {ROWS} of largest relative error; report.json holds all 560" in text
    text = render_html(make_report(16, experts=208))
    assert len(text) < 200_000
    assert "report.json holds all 10,048" in text
    assert "Dots are means over a block and kind" in text


NOTHING = {
    "command": None,
    "versions": {},
    "model": {"name": "", "architecture": None, "license": None},
    "preset": None,
    "target_bits": None,
    "target": None,
    "calibration": None,
    "recovery": None,
    "features": None,
    "hash": None,
    "original_bytes": None,
    "file_bytes": None,
    "compressed_parameters": None,
    "kept_parameters": None,
    "bits_per_parameter": {"tensors": None, "file": None},
    "tensors": [],
    "blocks": [],
    "kept": [],
}


def test_nothing_known(make_report):
    page = Page(render_html(make_report() | NOTHING)).text
    for wanted in ("No sizes", "No tensor with known bits", "No error was measured"):
        assert wanted in page
    assert "None" not in page


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 0, 5e-324, 9e18])
def test_extreme_numbers(make_report, value):
    report = make_report(3)
    for row in report["tensors"]:
        for key in ("bits_per_parameter", "relative_error", "hessian_error", "damping"):
            row[key] = value
        row["error_by_importance"][3] = value
    for block in report["blocks"]:
        block["before"] = block["groups"][0]["before"] = value
    report["bits_per_parameter"] |= {"tensors": value, "payload": value}
    page = Page(render_html(report)).text
    assert "nan" not in page
    assert "inf " not in page


def test_without_blocks(make_report):
    report = make_report(2, calibrated=False, recovery=False)
    for tensor in report["tensors"]:
        tensor["block"] = tensor["kind"] = None
    text = render_html(report)
    assert "position in the file" in text
    assert "no kind" in text


def test_tensors_outside_the_blocks(make_report):
    report = make_report(2)
    report["tensors"][0]["block"] = None
    report["tensors"][1]["relative_error"] = None
    page = Page(render_html(report)).text
    assert "1 tensor outside the blocks not drawn" in page
    assert "1 tensor without a measured error not drawn" in page


def test_many_lines(make_report):
    report = make_report(warnings=[f"number {i}" for i in range(1000)], command="a \\\n  --b 'c'")
    text = render_html(report)
    assert "number 199<" in text
    assert "number 200<" not in text
    assert "a \\\n  <span>--b</span> &#39;c&#39;" in text
