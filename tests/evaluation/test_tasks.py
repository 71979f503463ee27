import json

import pytest

from nwc.errors import ConfigError, FormatError
from nwc.evaluation.tasks import local_file, read_rows, task_config

ROW = {"question": "Which is red?", "choices": ["sky", "blood", "snow"], "answer": 1}


def write(path, *values):
    path.write_text("\n".join(json.dumps(value) for value in values))
    return path


def test_rows_of_any_users_file(tmp_path):
    rows = read_rows(write(tmp_path / "mine.jsonl", ROW, ROW | {"subject": "colours", "more": 1}))
    assert rows[0] == ROW | {"subject": ""}
    assert rows[1]["subject"] == "colours"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "line 2: no question"),
        (ROW | {"choices": ["a"]}, r"line 2: choices are \['a'\]"),
        (ROW | {"choices": ["a", 2]}, "line 2: choices"),
        (ROW | {"answer": 3}, "line 2: answer is 3 of 3 choices"),
        (ROW | {"answer": "1"}, "line 2: answer is '1'"),
        ([], "line 2: no question"),
        ({"text": "word"}, "line 2: a text of one word"),
    ],
)
def test_lines_that_are_no_question_are_named(tmp_path, value, message):
    with pytest.raises(FormatError, match=message):
        read_rows(write(tmp_path / "x.jsonl", ROW, value))


@pytest.mark.parametrize(("text", "message"), [("", "no question"), ("{", "not JSON Lines")])
def test_files_without_questions(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_rows(path)


@pytest.mark.parametrize(
    "options",
    [
        "A ) 38 , B ) 27.675 , C ) none of these",
        "['A ) 38', 'B ) 27.675', 'C ) none of these']",
        "A ) A ) 38 , B ) B ) 27.675 , C ) C ) none of these",
        "a ) 38 , b ) 27.675 , c ) none of these",
    ],
)
def test_mathqa_as_published(tmp_path, options):
    question = {"instruction": f"how many ? The options: {options}", "answer": "B"}
    path = tmp_path / "mathqa.json"
    path.write_text(json.dumps([question]))
    assert read_rows(path) == [
        {
            "question": "how many ?",
            "choices": ["38", "27.675", "none of these"],
            "answer": 1,
            "subject": "",
        }
    ]


def test_files_are_found_by_the_tasks_name(tmp_path):
    for name in ("arc-easy.jsonl", "hellaswag_val.jsonl", "mathqa.json"):
        write(tmp_path / name, ROW)
    assert local_file("arc_easy", tmp_path).name == "arc-easy.jsonl"
    assert local_file("hellaswag", tmp_path).name == "hellaswag_val.jsonl"
    assert local_file("anything", tmp_path / "mathqa.json").name == "mathqa.json"
    with pytest.raises(ConfigError, match=r"no file for task piqa; its tasks are: arc-easy, "):
        local_file("piqa", tmp_path)


def test_prompts_are_the_harnesses(tmp_path):
    pytest.importorskip("datasets", reason="the extra [eval] is not installed")
    row = ROW | {"subject": "high_school_biology"}
    easy, mmlu, boolq = (task_config(name, [row]) for name in ("arc-easy", "mmlu", "boolq"))
    assert easy["doc_to_text"](row) == "Question: Which is red?\nAnswer:"
    assert mmlu["doc_to_text"](row) == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "Which is red?\nA. sky\nB. blood\nC. snow\nAnswer:"
    )
    assert mmlu["doc_to_choice"](row) == ["A", "B", "C"]
    assert boolq["doc_to_choice"](row) == ["no", "yes"]
    gap = {"question": "The cup broke as _ fell.", "choices": ["it", "he"], "answer": 0}
    winogrande = task_config("winogrande", [gap])
    assert winogrande["doc_to_choice"](gap) == ["The cup broke as it", "The cup broke as he"]
    assert winogrande["doc_to_target"](gap) == "fell."
    lambada = task_config("lambada", [{"text": "the cat sat"}])
    assert lambada["doc_to_text"]({"text": "the cat sat"}) == "the cat"
    assert lambada["doc_to_target"]({"text": "the cat sat"}) == " sat"
