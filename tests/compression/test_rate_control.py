"""The controller alone, with matrices that take other sizes than their samples said."""

import pytest

from nwc.compression.rate_control import Done, Estimate, RateController, entry_bytes

WEIGHTS, MATRICES = 20_000, 24


@pytest.mark.parametrize("surprise", [-1.5, -0.3, 0.0, 0.3, 1.5, 2.5])
def test_what_is_left_is_not_ruined_for_what_was_not_foreseen(surprise):
    names = [f"matrix {i}" for i in range(MATRICES)]
    controller = RateController(
        target_bits=5.0 * WEIGHTS * MATRICES,
        fixed_bits=0.0,
        offset_digits=6,
        reference=3.0,
        slope=1.0,
        estimates={
            name: Estimate(f"kind {i % 3}", WEIGHTS, 0.0, 5.0, 0.0) for i, name in enumerate(names)
        },
    )
    done, gains = {}, []
    for name in names:
        gain = controller.log2_gain(done, 0)
        size = round((5.0 + surprise + gain - 3.0) * WEIGHTS / 8) - entry_bytes(name, 10**4, 6)
        done[name] = Done(size, gain)
        gains.append(gain)
    assert abs(controller.deviation(done, 0)) < 0.005
    # The first matrices know nothing yet; all that follow share what they took too much.
    settled = gains[MATRICES // 3 :]
    assert max(settled) - min(settled) < 0.3
    assert settled[-1] == pytest.approx(3.0 - surprise, abs=0.6)
