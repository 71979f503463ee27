"""`nwc bench quality` on a tiny model."""

import json

import pytest


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return tmp_path_factory.mktemp("board")


def options(llama, text, board, *methods, bits=("4", "5")):
    pytest.importorskip("matplotlib")
    return (
        "bench", "quality", llama, "--text", text, "--calibration", text, "--output", board,
        "--methods", *methods, "--bits", *bits, "--context", "64", "--max-tokens", "1024",
        "--calibration-tokens", "2048", "--no-recovery",
    )  # fmt: skip


def test_methods_side_by_side(nwc, llama, text, board):
    result = nwc(*options(llama, text, board, "nwc", "rtn"), "--json")
    assert result.code == 0, result.err
    rows = result.json
    assert [(row["method"], row["asked"]) for row in rows] == [
        ("nwc", 4.0), ("nwc", 5.0), ("rtn", 4.15625), ("rtn", 5.1640625),
    ]  # fmt: skip
    for row in rows:
        # Tables and scales of matrices this small are far from what they are of large ones.
        assert abs(row["bits"] - row["asked"]) < (0.05 if row["method"] == "nwc" else 0.5)
        assert row["kl_divergence"] > 0
        # Embeddings stay in 16 bits; neither side counts tokenizer and config.
        assert row["bits"] < row["file_bits"] < 16
    assert rows[1]["kl_divergence"] < rows[0]["kl_divergence"]
    assert {path.name for path in board.iterdir()} == {
        "rows.jsonl", "leaderboard.md", "leaderboard.svg",
    }  # fmt: skip
    page = (board / "leaderboard.md").read_text()
    assert page.count("| nwc |") == 3  # two rows, and the head of the last column
    assert "<svg" in (board / "leaderboard.svg").read_text()


def test_what_is_there_is_not_measured_again_and_methods_can_be_added(nwc, llama, text, board):
    before = (board / "rows.jsonl").read_text()
    result = nwc(*options(llama, text, board, "nwc", "rtn", "ecsq", bits=("4",)), "--json")
    assert result.code == 0, result.err
    assert (board / "rows.jsonl").read_text().startswith(before)
    assert [row["method"] for row in result.json] == ["nwc", "rtn", "ecsq"]
    added = (board / "rows.jsonl").read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["method"] for line in added] == ["ecsq"]


def test_wrong_use(nwc, llama, text, board, tmp_path):
    result = nwc(*options(llama, text, tmp_path / "new", "nwc", "magic"))
    assert result.code == 2
    assert "magic" in result.err
    assert "gptq" in result.err
    assert not (tmp_path / "new").exists()
    result = nwc(*options(llama, text, tmp_path / "new", "rtn", bits=("11",)))
    assert result.code == 2
    assert "no" in result.err
    assert "rtn" in result.err
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    result = nwc(*options(llama, text, tmp_path, "nwc"))
    assert result.code == 2
    assert "line 1" in result.err
