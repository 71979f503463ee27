import sys

import pytest

from nwc.calibration.corpus import read_text, token_windows
from nwc.errors import CalibrationError


def tokenize(text):
    return list(text.encode())


def test_windows_are_consecutive_and_whole(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")
    windows = token_windows(str(path), tokenize, tokens=0, context=4)
    assert windows.tolist() == [[97, 98, 99, 100], [101, 102, 103, 104]]
    assert token_windows(str(path), tokenize, tokens=7, context=4).shape == (1, 4)


def test_jsonl_texts_are_joined(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    assert read_text(str(path), 100) == "one\n\ntwo"
    assert read_text(str(path), 2) == "on"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text; name a file with some"),
        ("a.txt", b" \n\t ", "holds no text"),
        ("a.txt", b"caf\xe9", r"not UTF-8 text \(.*\); convert it"),
        ("a.jsonl", b"{oops", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', 'line 2 has no string field "text"'),
        ("a.jsonl", b'["x"]', 'no string field "text"'),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_text(str(path), 100)


def test_too_short_for_a_window(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc")
    with pytest.raises(CalibrationError, match=r"3 tokens.*one window takes 8.*longer text"):
        token_windows(str(path), tokenize, tokens=0, context=8)


def test_neither_file_nor_data_set(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match=r"is not a file.*pip install"):
        read_text("no/such", 10)


def test_data_sets_are_streamed_by_name(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name, config, *, split, streaming):
            assert (name, config, split, streaming) == ("org/set", "small", "test", True)
            return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert read_text("org/set:small:test", 100) == "one\n\ntwo"


def test_data_set_without_text(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(*_arguments, **_options):
            return iter([{"question": "?"}])

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    with pytest.raises(CalibrationError, match=r"columns \['question'\], wanted \"text\""):
        read_text("org/set", 100)
