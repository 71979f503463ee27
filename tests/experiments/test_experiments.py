"""Every experiment at the scale that shows that it runs, and what the figures rest on."""

import json
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import fig13
import published
import ranking
import runner
import tab01
import torch
from world import World, made

from nwc.cli.trials import WAYS, Judge

PAPER = {f"Table {i}" for i in range(1, 8)}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return runner.Options(scale="tiny", output=tmp_path_factory.mktemp("reproduce"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World("tiny", None, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", runner.ALL)
def test_experiment(name, options, world):
    experiment = runner.experiment_of(name)
    points = experiment.points(world)
    rows = runner.run(experiment, options, world)
    for point in points:
        found = [row for row in rows if all(row.get(k) == v for k, v in point.items())]
        assert found, f"no row for {point}"
    for row in rows:
        for key, value in row.items():
            assert not isinstance(value, float) or math.isfinite(value), f"{key} of {row}"
    # The rows are all a figure needs, and a figure or a table is made of them.
    again = [json.loads(json.dumps(row)) for row in rows]
    assert experiment.plot is not None or experiment.table is not None
    if experiment.plot is not None:
        picture = (options.folder / f"{name}.svg").read_text()
        assert picture.count("<path") > 5
        experiment.plot(again, options.folder / "again.svg")
    if experiment.table is not None:
        assert (options.folder / f"{name}.md").read_text() == experiment.table(again)
    # What is there is not measured again.
    before = {path: path.read_text() for path in options.folder.glob("*.jsonl")}
    runner.run(experiment, options, world)
    assert before == {path: path.read_text() for path in options.folder.glob("*.jsonl")}


def test_trials_cover_what_the_registry_has(world):
    named = {point["method"] for point in ranking.points(World("full", None, Path()))}
    assert set(WAYS) <= named, "a method of the registry is not in the ranking"
    full = World("full", None, Path())
    for point in runner.experiment_of("fig03").points(full):
        assert point["model"] == "Llama 3-8B"
        assert point["method"] in WAYS


def test_ranking_sets_rivals_beside_ours_at_their_own_bits():
    def row(method, asked, bits, kl, variant="feedback"):
        return {
            "model": "a", "text": "t", "seed": 0, "method": method, "variant": variant,
            "asked": asked, "bits": bits, "kl_divergence": kl,
        }  # fmt: skip

    ours = [row("nwc default", bits, bits, 4.0**-bits) for bits in (3.0, 4.0, 5.0, 6.0)]
    near = [row("near", 4.0, 4.5, 3 * 4.0**-4.5)]
    far = [row("far", 3.1, 3.1, 5 * 4.0**-3.1), row("far", 6.17, 6.17, 5 * 4.0**-6.17)]
    lines = ranking.table([*far, *near, *ours]).splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert names == ["Method", "nwc", "near", "far"]
    [of_near] = [line for line in lines if line.startswith("| near")]
    assert of_near == "| near |  | 0.00586 at 4.50, 3.00 x |  |  |"
    assert lines[-3].startswith("| far")
    assert lines[-3].count("5.00 x") == 2


def test_tokens_of_made_models_are_bytes(world):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made("llama", world.scratch))
    text = "First Citizen:\n\tZo\u00eb, \u20ac 5~\u00ad"
    assert tokenizer(text)["input_ids"] == list(text.encode())


def test_a_judge_puts_tasks(world, tmp_path):
    (tmp_path / "piqa.jsonl").write_text(
        "".join(
            json.dumps({"question": f"{i} and {i}?", "choices": ["yes", "no"], "answer": i % 2})
            + "\n"
            for i in range(4)
        )
    )
    model = made("llama", world.scratch)
    text = tmp_path / "text.txt"
    text.write_text("once upon a time " * 20)
    judge = Judge(
        model=model, texts=(str(text),), context=64, tasks=("piqa",), task_files=tmp_path
    )
    [found] = judge(Path(model))
    assert found["kl_divergence"] == 0
    assert found["accuracy"] == found["tasks"]["piqa"]
    assert found["accuracy"] in (0, 0.25, 0.5, 0.75, 1)


def test_printed_numbers_name_their_place():
    assert {each.place for each in published.PRINTED if "Table" in each.place} == PAPER
    for each in published.PRINTED:
        assert re.fullmatch(r"Table \d|Section (\d|[A-F])\.\d", each.place)
    keys = [(each.place, each.row, each.quantity) for each in published.PRINTED]
    assert len(keys) == len(set(keys))
    assert published.printed("Table 5", "nwc", "perplexity") == 5.17
    assert published.printed("Table 5", "nwc", "no such thing") is None
    # The mean that Table 4 prints is that of its own columns.
    tasks = ("openbookqa", "arc_easy", "winogrande", "hellaswag", "piqa", "mathqa")
    for name in published.rows_of("Table 4"):
        mean = sum(published.printed("Table 4", name, task) for task in tasks) / len(tasks)
        assert mean == pytest.approx(published.printed("Table 4", name, "accuracy"), abs=0.011)


def test_transforms_keep_what_they_promise():
    W = torch.randn(48, 80, generator=torch.Generator().manual_seed(0)) ** 3
    for name in ("dct", "random rotation", "rht"):
        turned = tab01.transformed(W, name)
        assert float(turned.norm()) == pytest.approx(float(W.norm()), rel=1e-4)
        assert not torch.allclose(turned, W, atol=0.1)
    assert fig13.excess_kurtosis(tab01.transformed(W, "rht")) < fig13.excess_kurtosis(W) / 4
    normal = tab01.transformed(W, "columns normalised")
    assert float(normal.square().mean()) == pytest.approx(1, rel=1e-3)


def test_an_experiment_that_is_stopped_goes_on(tmp_path, world):
    measured = []

    def measure(world, point):
        measured.append(point["x"])
        if point["x"] == 2 and len(measured) == 3:
            raise KeyboardInterrupt
        return [{"y": point["x"] ** 2}]

    study = runner.Experiment(
        name="study", points=lambda _: [{"x": x} for x in range(4)], measure=measure,
        table=lambda rows: str([row["y"] for row in rows]),
    )  # fmt: skip
    options = runner.Options(output=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.run(study, options, world)
    rows = runner.run(study, options, world)
    assert measured == [0, 1, 2, 2, 3]
    assert [row["y"] for row in rows] == [0, 1, 4, 9]
    assert (tmp_path / "study.md").read_text() == "[0, 1, 4, 9]"
