import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "experiments" / "learned_parts.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("learned_parts", FILE)
    study = importlib.util.module_from_spec(spec)
    sys.modules["learned_parts"] = study
    spec.loader.exec_module(study)
    output = tmp_path_factory.mktemp("study") / "rows.jsonl"
    study.run(study.LearnedParts(output=output, scale="tiny", steps=3))
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_every_part_has_its_rows(rows):
    parts = {row["part"] for row in rows}
    assert {"compander", "skip", "linear", "prior", "classes, half octaves"} <= parts
    for row in rows:
        assert ("saved" in row) != ("bits" in row)


def test_more_knowledge_of_scales_takes_fewer_bits(rows):
    def bits(part):
        return [row["bits"] for row in rows if row["part"] == part]

    for one, halves in zip(
        bits("classes, a single one"), bits("classes, half octaves"), strict=True
    ):
        assert halves < one


def test_an_orthogonal_transform_changes_little(rows):
    # The weights of a chunk are as good as independent.
    assert all(abs(row["saved"]) < 0.1 for row in rows if row["part"] == "linear")
