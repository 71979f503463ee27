import torch

from nwc.compression.preflight import preflight


def forecast(run, windows=None, workers=1):
    return preflight(run.plan, run.source, run.job, windows, workers)


def test_what_costs_more_is_forecast_so(llama, prepare):
    windows = torch.zeros(64, 32, dtype=torch.long)
    free = forecast(prepare(llama, name="free"))
    calibrated = forecast(prepare(llama, calibrated=True, name="calibrated"), windows)
    tuned = forecast(prepare(llama, calibrated=True, steps=64, name="tuned"), windows)
    assert free.seconds < calibrated.seconds < tuned.seconds
    assert free.memory_bytes < calibrated.memory_bytes <= tuned.memory_bytes
    assert free.disk_bytes < calibrated.disk_bytes < tuned.disk_bytes


def test_workers_share_the_time(llama, prepare):
    run = prepare(llama)
    times = [forecast(run, workers=count).seconds for count in (1, 3, 300)]
    assert times[1] < times[0]
    # Three units: more workers than that find nothing to do.
    assert times[2] > times[1] / 3


def test_experts(experts, prepare):
    windows = torch.zeros(64, 32, dtype=torch.long)
    run = prepare(experts, calibrated=True, steps=4)
    assert forecast(run, windows).seconds > 0
