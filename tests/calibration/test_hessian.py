import pytest
import torch

from nwc.calibration.hessian import HessianAccumulator
from nwc.errors import CalibrationError


def test_equals_the_mean_outer_product():
    x = torch.randn(3, 50, 12)
    h = HessianAccumulator(12, "layer")
    for batch in x:
        h.add(batch.view(5, 10, 12))
    flat = x.double().view(-1, 12)
    torch.testing.assert_close(h.finish().double(), flat.T @ flat / 150, rtol=1e-5, atol=1e-6)
    assert (h.tokens, h.non_finite) == (150, 0)


def test_half_precision_inputs_accumulate_in_fp32():
    x = torch.full((1000, 1), 3.0, dtype=torch.bfloat16)
    h = HessianAccumulator(1, "layer")
    h.add(x)
    assert h.finish().item() == 9.0


def test_tokens_that_are_not_finite_are_counted_and_left_out():
    x = torch.ones(4, 2)
    x[1, 0], x[2, 1] = float("inf"), float("nan")
    h = HessianAccumulator(2, "layer")
    h.add(x)
    assert (h.tokens, h.non_finite) == (2, 2)
    assert torch.equal(h.finish(), torch.ones(2, 2))


def test_a_layer_without_tokens_is_named():
    h = HessianAccumulator(2, "mlp.up")
    with pytest.raises(CalibrationError, match=r"mlp\.up saw no tokens.*--data-free"):
        h.finish()
    h.add(torch.full((3, 2), float("nan")))
    with pytest.raises(CalibrationError, match="3 tokens, all with non-finite inputs"):
        h.finish()


def test_inputs_too_large_to_square_are_named():
    h = HessianAccumulator(2, "mlp.up")
    h.add(torch.full((3, 2), 1e30))
    with pytest.raises(CalibrationError, match=r"mlp\.up saw inputs whose squares leave FP32"):
        h.finish()


def test_a_sum_that_waits_on_disk_is_the_same(tmp_path):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    plain, spilled = HessianAccumulator(5, "a"), HessianAccumulator(5, "a")
    for h in (plain, spilled):
        h.add(x)
    spilled.spill(tmp_path / "hessians" / "0.bin")
    assert torch.equal(spilled.finish(), plain.finish())
    assert spilled.n == 5
    assert not list((tmp_path / "hessians").iterdir())
    assert torch.equal(spilled.finish(), plain.finish())
