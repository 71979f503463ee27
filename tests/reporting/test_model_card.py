"""The card holds the figures, and no text of a report breaks out of it."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nwc.reporting.model_card import fenced, literal, quoted, render_card

HOSTILE = [
    '"><script>alert(1)</script>',
    "a | b | c",
    "---\nlicense: mit\n---",
    "\n\n# heading\n\n```sh\nrm -rf\n```",
    "`code` *and* _more_ [x](http://evil) ![y](z) <https://evil>",
    "http://evil www.evil.org someone@evil.org",
    "ends with a backslash \\",
    "a \\| b",
    "- 1. list",
    "half \ud800 a pair \u2028 \u202e",
    "&lt;b&gt; &#124;",
    "$$x$$ ~~y~~ ==z==",
    "yes",
    "",
]
ANY_TEXT = st.text(st.characters(codec=None), max_size=40)


def parse(card):
    """Front matter, and the tokens of the rest as CommonMark with tables and links sees it."""
    assert card.startswith("---\n")
    front, rest = card[4:].split("\n---\n", 1)
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return yaml.safe_load(front), markdown.parse(rest)


def shape(tokens):
    """Everything but the texts."""
    return [
        (t.type, t.tag, [(c.type, c.tag) for c in t.children or []])
        if any(c.type not in ("text", "text_special") for c in t.children or [])
        else (t.type, t.tag)
        for t in tokens
    ]


def texts(tokens):
    return ["".join(c.content for c in t.children) for t in tokens if t.type == "inline"]


def inject(report, text):
    report["model"] = {"name": text, "architecture": text, "license": text}
    report["method"] = report["preset"] = report["hash"] = report["nwc"] = text
    report["command"] = text
    report["versions"] = {text: text}
    report["calibration"]["source"] = text
    report["warnings"] = [text]
    return report


def test_card(make_report):
    front, tokens = parse(render_card(make_report(warnings=["12 columns_are dead"])))
    assert front == {
        "license": "mit",
        "base_model": "books-llama",
        "library_name": "nwc",
        "tags": ["nwc", "compressed"],
    }
    found = texts(tokens)
    for wanted in ("4.500", "6.663", "2.45", "4.71 %", "nwc, preset default", "2.13.0"):
        assert wanted in found
    assert "9f86d081884c7d659a2feaa0c55ad015" in found
    assert "Warning: 12 columns_are dead" in found
    blocks = [t.content for t in tokens if t.type == "fence"]
    assert any("nwc.load_model(" in b for b in blocks)
    assert any("nwc verify" in b and "nwc decompress" in b for b in blocks)
    assert blocks[-1] == "nwc compress M --output OUT --bits 4.5 --calibration text.txt\n"


def test_data_free_and_unknown(make_report):
    report = make_report(calibrated=False, original_bytes=None, target_bits=None, command=None)
    report["model"]["license"] = None
    front, tokens = parse(render_card(report))
    assert "license" not in front
    found = texts(tokens)
    assert "none: data-free" in found
    assert not [t for t in found if "asked for" in t]
    assert "The command is not known." in found


@pytest.mark.parametrize(
    ("licence", "front"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("my own: licence", {"license": "other", "license_name": "my own: licence"}),
    ],
)
def test_licences(make_report, licence, front):
    report = make_report(1)
    report["model"]["license"] = licence
    found, _ = parse(render_card(report))
    assert {k: v for k, v in found.items() if k.startswith("license")} == front


@pytest.mark.parametrize("name", ["org/model-7B", "gpt2", "no", "1.0"])
def test_base_models_are_text(make_report, name):
    report = make_report(1)
    report["model"]["name"] = name
    assert parse(render_card(report))[0]["base_model"] == name


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text(make_report, hostile):
    card = render_card(inject(make_report(1), hostile))
    card.encode("utf-8")
    front, tokens = parse(card)
    assert set(front) <= {"license", "license_name", "base_model", "library_name", "tags"}
    assert front["tags"] == ["nwc", "compressed"]
    benign = inject(make_report(1), "name" if hostile else "")
    assert shape(tokens) == shape(parse(render_card(benign))[1])
    # No dialect finds a link, a mail address or HTML in what is left.
    rest = re.sub(r"^(`{3,})\w*\n.*?\n\1\n", "", card.split("\n---\n", 1)[1], flags=re.S | re.M)
    assert not re.search(r"://|www\.|@|<", rest)


@given(text=ANY_TEXT)
def test_any_text_stays_text(make_report, text):
    _, tokens = parse(render_card(inject(make_report(1), text)))
    benign = inject(make_report(1), "name" if text else "")
    assert shape(tokens) == shape(parse(render_card(benign))[1])


@given(ANY_TEXT)
def test_literal_is_one_line(text):
    assert len(literal(text).splitlines()) <= 1


@given(ANY_TEXT)
def test_yaml_reads_it_back(text):
    found = yaml.safe_load(f"key: {quoted(text)}")["key"]
    if text.isprintable():
        assert found == text
    assert found.isprintable() or not text.isprintable()


@given(st.text("`~ab\n ", max_size=30))
def test_code_blocks_hold(text):
    tokens = MarkdownIt().parse(fenced(text, "sh"))
    assert [t.type for t in tokens] == ["fence"]
    assert tokens[0].content == text + "\n"
