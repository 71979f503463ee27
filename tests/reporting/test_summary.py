"""Means, groups and shares."""

import math

import pytest

from nwc.reporting import figures, summary


def tensor(**values):
    return {"name": "t", "block": 0, "kind": "mlp.up_proj", "shape": [2, 3],
            "relative_error": None, "error_by_importance": None} | values  # fmt: skip


def test_means_weigh_parameters():
    few, many = tensor(shape=[1, 1], relative_error=0.4), tensor(shape=[3, 1], relative_error=0.2)
    assert summary.mean([few, many, tensor()], "relative_error") == pytest.approx(0.25)
    assert summary.mean([tensor(), tensor(relative_error=math.nan)], "relative_error") is None


def test_experts_are_one_kind():
    tensors = [tensor(kind=f"mlp.experts.{i}.up_proj") for i in range(100)]
    kinds = summary.Kinds([*tensors, tensor(kind=None), tensor(kind="mlp.w1")])
    assert kinds.names == ["mlp.experts.*.up_proj", "no kind", "mlp.w1"]
    assert kinds.labels == ["up_proj", "no kind", "w1"]
    assert kinds.of(tensors[7]) == 0


def test_too_many_kinds():
    tensors = [tensor(kind=f"kind{i}", shape=[i + 1]) for i in range(50)]
    kinds = summary.Kinds(tensors)
    assert kinds.names == [f"kind{i}" for i in range(43, 50)] + ["others"]
    assert [kinds.of(t) for t in (tensors[0], tensors[43], tensors[49])] == [7, 0, 6]


def test_labels_stay_apart():
    kinds = summary.Kinds([tensor(kind="mlp.up_proj"), tensor(kind="shared.up_proj")])
    assert kinds.labels == kinds.names


def test_worst():
    tensors = [tensor(name=str(e), relative_error=e) for e in (0.1, None, 0.3, 0.2)]
    assert summary.worst(tensors, 4) == tensors
    assert [t["name"] for t in summary.worst(tensors, 2)] == ["0.3", "0.2"]


def test_shares_add_up_to_the_folder(make_report):
    report = make_report()
    found = summary.shares(report)
    assert [s.name for s in found] == ["payload", "overhead", "kept tensors", "other files"]
    assert sum(s.bytes for s in found) == pytest.approx(report["file_bytes"], abs=1)
    overhead = next(s for s in found if s.name == "overhead")
    assert sum(s.bytes for s in summary.overheads(report)) == pytest.approx(overhead.bytes)
    weights = report["compressed_parameters"]
    tensors = 8 * (found[0].bytes + overhead.bytes) / weights
    assert tensors == pytest.approx(report["bits_per_parameter"]["tensors"])


def test_a_part_that_is_not_known_yet_counts(make_report):
    report = make_report()
    report["bits_per_parameter"]["lattice"] = 0.5
    assert "lattice" in [s.name for s in summary.overheads(report)]


def test_a_contradiction_is_said(make_report):
    report = make_report(file_bytes=1000)
    bars = figures.byte_bars(report)
    assert bars.excess > 1_000_000


def test_equal_errors_look_equal():
    tensors = [tensor(error_by_importance=[0.04 + 0.0001 * i for i in range(10)])]
    heat = figures.heat(tensors, summary.Kinds(tensors))
    assert {heat.level(v) for v in heat.by_kind[0].values} <= {4, 5}
    assert heat.level(None) is None
    assert heat.level(0.0) == 0


def test_heat_spans_its_colours():
    tensors = [tensor(error_by_importance=[0.01 * 2**i for i in range(10)])]
    heat = figures.heat(tensors, summary.Kinds(tensors))
    assert [heat.level(v) for v in heat.by_kind[0].values] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_gap_to_the_bound():
    tensors = [
        tensor(bits_per_parameter=float(r), relative_error=2.0**-r * 10**0.1) for r in (3, 4, 5)
    ]
    picture = figures.rate_distortion(tensors, summary.Kinds(tensors))
    assert "2.0 dB above the Gaussian bound" in picture.says
    assert pytest.approx(1.533, abs=1e-3) == figures.SPACE_FILLING_LOSS_DB


def test_gains():
    groups = [
        {"name": "a", "before": 2.0, "after": 1.0, "steps": 3, "kept": True, "note": ""},
        {"name": "b", "before": None, "after": 1.0, "steps": 3, "kept": False, "note": None},
    ]
    block = {"block": 0, "groups": groups, "before": 4.0, "after": 1.0}
    found = figures.gains([block, {"block": 1, "groups": [], "before": None, "after": None}])
    assert found.says == (
        "It helped after 1 of 2 groups. The error is 50.0 % lower each time (geometric mean)."
    )
    assert [row["change"] for row in found.rows] == [-0.5, None]
    assert found.chart.count("<circle") == 2
    assert figures.gains([]) is None


def test_of_many_groups_the_last_is_drawn(make_report):
    blocks = make_report(80)["blocks"]
    found = figures.gains(blocks)
    kept = sum(block["groups"][-1]["kept"] for block in blocks)
    assert found.chart.count("<circle") == 80 + kept
    assert "last group" in found.note
