"""What a report must hold, and what is said when it does not."""

import copy
import json

import pytest

from nwc.errors import FormatError
from nwc.reporting.schema import check_report


def without(report, *path):
    *way, last = path
    place = report
    for step in way:
        place = place[step]
    del place[last]


def changed(report, value, *path):
    *way, last = path
    place = report
    for step in way:
        place = place[step]
    place[last] = value


def test_reports_pass_also_through_json(make_report):
    for report in (make_report(), make_report(calibrated=False, recovery=False)):
        assert check_report(json.loads(json.dumps(report))) == report


def test_parts_besides_do_not_matter(make_report):
    check_report(make_report(future={"of": "nwc"}))


@pytest.mark.parametrize(
    "path",
    [
        ("tensors",),
        ("model", "license"),
        ("tensors", 3, "shape"),
        ("bits_per_parameter", "file"),
        ("blocks", 1, "groups", 0, "kept"),
        ("kept", 0, "why"),
    ],
)
def test_missing(make_report, path):
    report = make_report(2)
    without(report, *path)
    with pytest.raises(FormatError, match=rf"here.* lacks {path[-1]}; make it again"):
        check_report(report, "here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tensors",), {}),
        (("tensors", 0), 7),
        (("tensors", 0, "name"), None),
        (("tensors", 0, "block"), -1),
        (("tensors", 0, "block"), 1.5),
        (("tensors", 0, "shape"), [4, -4]),
        (("tensors", 0, "shape"), [True, 4]),
        (("tensors", 0, "bits_per_parameter"), "4.5"),
        (("tensors", 0, "relative_error"), -0.1),
        (("tensors", 0, "log2_gain"), 10**400),
        (("tensors", 0, "log2_gain"), 1e300),
        (("tensors", 0, "error_by_importance"), [0.1] * 9),
        (("bits_per_parameter", "payload"), []),
        (("versions",), ["3.11"]),
        (("versions", "torch"), 2.13),
        (("calibrated",), 1),
        (("target",), "moon"),
        (("target",), []),
        (("warnings",), "careful"),
        (("model",), None),
        (("blocks", 0, "groups"), None),
        (("original_bytes",), 2**63),
    ],
)
def test_wrong(make_report, path, value):
    report = make_report(2)
    changed(report, value, *path)
    with pytest.raises(FormatError, match=r"^here: .* is .*, wanted ") as caught:
        check_report(report, "here")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [None, 7, "report", []])
def test_not_an_object(value):
    with pytest.raises(FormatError, match="wanted an object"):
        check_report(value)


def test_the_report_is_not_changed(make_report):
    report = make_report()
    before = copy.deepcopy(report)
    check_report(report)
    assert report == before
