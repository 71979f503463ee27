import pytest
import torch

from nwc.codec.transforms import Correction, ResidualTransform


def test_residual_starts_as_a_scaled_identity():
    torch.manual_seed(0)
    transform = ResidualTransform(64, 3, (2.0, 8.0))
    transform.requires_grad_(False)
    x = torch.randn(500, 16)
    for level, gain in enumerate((2.0, 8.0)):
        y = transform(x, torch.full((500,), level))
        # The blocks start with a tenth of their usual size: near the identity, not equal to it.
        assert float((y / gain - x).square().mean()) < 0.1
    assert not torch.equal(transform(x, torch.zeros(500).long()), y)


@pytest.mark.parametrize("size", [1, 16])
def test_correction_starts_at_zero(size):
    correction = Correction(size, 8)
    assert not correction(torch.randn(3, 5, 16), torch.randn(3, 5, 1)).any()


def test_element_wise_correction_sees_one_weight():
    torch.manual_seed(0)
    correction = Correction(1, 8)
    torch.nn.init.normal_(correction.reduce.weight)
    x, c = torch.randn(4, 16), torch.zeros(4, 1)
    y = x.clone()
    y[:, 3] += 1
    changed = (correction(x, c) != correction(y, c)).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [3]


def test_correction_depends_on_the_gain():
    torch.manual_seed(0)
    correction = Correction(16, 8)
    for parameter in correction.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 16)
    assert not torch.equal(correction(x, torch.zeros(4, 1)), correction(x, torch.ones(4, 1)))
