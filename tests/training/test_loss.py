import math

import pytest
import torch

from nwc.codec.model import TrainingOutput
from nwc.training.loss import gain_loss, importance_loss

OUTPUT = TrainingOutput(torch.tensor([3.0, 5.0]), torch.tensor([0.01, 0.002]))


def test_the_paper_divides_the_rate():
    loss = importance_loss(OUTPUT, 100.0, torch.tensor([0.5, 10.0]))
    assert loss.item() == pytest.approx(((3 / 0.5 + 1) + (5 / 10 + 0.2)) / 2)


def test_gain_loss_weighs_the_error_by_the_gain():
    loss = gain_loss(OUTPUT, torch.tensor([2.0, 4.0]))
    weight = 6 / math.log(2)
    assert loss.item() == pytest.approx((3 + weight * 4 * 0.01 + 5 + weight * 16 * 0.002) / 2)


def test_a_uniform_quantiser_is_optimal_at_its_own_gain():
    # At high rate R = log2 g + const and D = 1 / (12 g^2): with the loss's weight for gain 4 the
    # total is least at g = 4.
    def total(g):
        return math.log2(g) + 6 / math.log(2) * 4**2 / (12 * g**2)

    assert total(4.0) < min(total(3.9), total(4.1))
