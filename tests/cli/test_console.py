from types import SimpleNamespace

import pytest

from nwc.cli import console


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_the_forecast_gives_way_to_what_was_seen(clock, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, *_columns, **_options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_task(self, *_, **fields):
            shown.append(fields["left"])
            return 0

        def update(self, _task, **fields):
            shown.append(fields.get("left"))

    monkeypatch.setattr(console, "Progress", Bar)
    monkeypatch.setattr(console, "err", SimpleNamespace(is_terminal=True))
    with console.timed_bar("compressing", 100, seconds=60, first=0.25) as show:
        show(0, "")
        clock[0] = 20
        show(10, "")  # less than the first block: the forecast counts
        clock[0] = 50
        show(25, "")  # the first block took 50 s, so the other three take 150
    assert shown == ["60 s", "60 s", "40 s", "2 min"]


def test_an_earlier_runs_share_took_no_time(clock, monkeypatch):
    monkeypatch.setattr(console, "err", console.Console(quiet=True))
    with console.timed_bar("compressing", 100, seconds=60, first=0.1) as show:
        show(80, "what an earlier run left")
        clock[0] = 10
        show(90, "half of the rest")  # not nine tenths of everything
