import dataclasses

import pytest
import torch

from nwc.compression.preflight import Speed, preflight

SPEED = Speed(
    column=1e-4,
    weight=1e-6,
    product={torch.bfloat16: 1e-12, torch.float32: 4e-12, torch.float64: 8e-12},
)
"""Measured times differ from run to run, so that no two forecasts could be compared."""


def forecast(run, windows=None, workers=1):
    return preflight(run.plan, run.source, run.job, windows, workers, SPEED)


def test_what_costs_more_is_forecast_so(llama, prepare):
    windows = torch.zeros(64, 32, dtype=torch.long)
    free = forecast(prepare(llama, name="free"))
    calibrated = forecast(prepare(llama, calibrated=True, name="calibrated"), windows)
    tuned = forecast(prepare(llama, calibrated=True, steps=64, name="tuned"), windows)
    assert free.seconds < calibrated.seconds < tuned.seconds
    assert free.memory_bytes < calibrated.memory_bytes <= tuned.memory_bytes
    assert free.disk_bytes < calibrated.disk_bytes < tuned.disk_bytes


def test_a_survey_takes_its_time(llama, prepare):
    windows = torch.zeros(64, 32, dtype=torch.long)
    run = prepare(llama, calibrated=True)
    surveyed = dataclasses.replace(run.job, survey_tokens=1024)
    with_survey = preflight(run.plan, run.source, surveyed, windows, 1, SPEED)
    assert with_survey.seconds > forecast(run, windows).seconds


def test_workers_share_the_time(llama, prepare):
    run = prepare(llama)
    times = [forecast(run, workers=count).seconds for count in (1, 3, 300)]
    assert times[1] == pytest.approx(times[0] / 3)
    # Three units: more workers than that find nothing to do.
    assert times[2] == times[1]


def test_experts(experts, prepare):
    windows = torch.zeros(64, 32, dtype=torch.long)
    run = prepare(experts, calibrated=True, steps=4)
    assert forecast(run, windows).seconds > 0


@pytest.mark.parametrize("calibrated", [False, True])
def test_measured_speed(llama, prepare, calibrated):
    run = prepare(llama, calibrated=calibrated)
    speed = Speed.measure(run.job.method, calibrated=calibrated)
    assert speed.weight > 0
    assert all(seconds > 0 for seconds in speed.product.values())
    windows = torch.zeros(64, 32, dtype=torch.long) if calibrated else None
    assert preflight(run.plan, run.source, run.job, windows, speed=speed).seconds > 0
