import json
import sys

import pytest


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "colours.jsonl"
    row = {"question": "the sky is", "choices": ["blue", "red"], "answer": 0}
    path.write_text("\n".join([json.dumps(row)] * 4))
    return path


@pytest.mark.filterwarnings("ignore")
def test_tasks_on_a_compressed_model(nwc, compressed, questions):
    pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")
    how = ("--tasks", "colours", "--task-files", questions.parent)
    found = nwc("eval", compressed, *how, "--json")
    assert found.code == 0, found.err
    assert {row["metric"] for row in found.json["tasks"]} == {"acc", "acc_norm"}
    shown = nwc("eval", compressed, *how)
    assert "colours (local)" in shown.out


def test_strided_perplexity(nwc, compressed, text):
    how = ("--text", text, "--context", "64", "--max-tokens", "1024", "--json")
    plain, strided = nwc("eval", compressed, *how), nwc("eval", compressed, *how, "--stride", "16")
    assert plain.json["tokens"] == 16 * 63
    assert strided.json["tokens"] == 1023
    assert strided.json["stride"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --text or --tasks"),
        (["--text", "x", "--stride", "3000"], "--stride 3000"),
        (["--text", "x", "--limit", "3"], "wants --tasks"),
        (["--text", "x", "--fewshot", "3"], "want --tasks"),
        (["--tasks", "a", "--task-files", "nowhere"], "does not exist"),
        (["--tasks", "a", "--limit", "-1"], "wanted at least 0"),
    ],
)
def test_wrong_options(nwc, compressed, options, message):
    found = nwc("eval", compressed, *options)
    assert found.code == 2
    assert message in found.err


def test_without_the_extra(nwc, compressed, questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    found = nwc("eval", compressed, "--tasks", "colours", "--task-files", questions)
    assert found.code == 2
    assert 'pip install "neural-weight-compression[eval]"' in found.err
