import itertools

import numpy as np
import pytest
import torch

from nwc.methods.base import LayerWeight
from nwc.methods.gptq import gptq
from nwc.methods.qtip import QTIP, QTIP3Inst, QTIPHybrid, code_of, gaussian_pairs
from nwc.numerics.ldlq import proxy_loss
from nwc.quantizers.qtip import quantise_rings

CODES = (QTIP, QTIP3Inst, QTIPHybrid)


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


def test_codes_are_of_unit_power():
    for name in ("1MAD", "3INST", "HYB"):
        code = code_of(name)
        assert (code**2).mean() == pytest.approx(1, abs=1e-5)
        assert abs(code.mean()) < 0.03


def test_pairs_have_their_sign_set_apart():
    pairs = gaussian_pairs()
    assert pairs.shape == (512, 2)
    assert (pairs[:, 0] >= 0).all()
    assert abs(pairs[:, 1].mean()) < 0.1


@pytest.mark.parametrize(("code", "printed"), [("1MAD", 0.069), ("3INST", 0.069), ("HYB", 0.071)])
def test_gaussian_error_of_the_paper(code, printed):
    # Tseng et al. 2024, Table 1: L = 16, 2 bits. A figure of two digits is good to 0.7 %; the mean
    # over 64 sequences, divided by their power, has a standard error of 0.4 %.
    x = np.random.default_rng(3).standard_normal((64, 256), dtype=np.float32)
    error = np.square(x - quantise_rings(x, code_of(code), 2)).mean() / np.square(x).mean()
    assert error == pytest.approx(printed, rel=0.015)


@pytest.mark.parametrize(
    ("code", "bits", "measured"),
    [
        ("1MAD", 3, 0.01777), ("1MAD", 4, 0.00475),
        ("3INST", 3, 0.01792), ("3INST", 4, 0.00482),
        ("HYB", 3, 0.01921), ("HYB", 4, 0.00601),
    ],
)  # fmt: skip
def test_gaussian_error_at_more_bits(code, bits, measured):
    # The paper prints none. These are of 400 sequences; tails make a mean over 48 good to 3 %.
    # At 3 bits states of 16 bits have to do better than the paper's 0.0198 for 12 bits (Table 2),
    # at 4 better than the best scalar quantiser.
    x = np.random.default_rng(3).standard_normal((48, 256), dtype=np.float32)
    error = np.square(x - quantise_rings(x, code_of(code), bits)).mean() / np.square(x).mean()
    assert error == pytest.approx(measured, rel=0.06)
    assert 4.0**-bits < error < {3: 0.0198, 4: 0.0095}[bits]


@pytest.mark.parametrize("method", CODES)
def test_every_bit_helps(method):
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
    errors = []
    for bits in method.settings:
        made = method(bits)
        scale = made._scale(x)
        errors.append(float((x - scale * made.quantise_gaussian(x / scale)).square().mean()))
    for more, less in itertools.pairwise(errors):
        assert less < 0.55 * more


def test_tiles_are_decided_apart():
    x = torch.randn(32, 48, generator=torch.Generator().manual_seed(4))
    whole = QTIPHybrid(4).quantise_gaussian(x)
    part = QTIPHybrid(4).quantise_gaussian(x[16:, 16:32].contiguous())
    assert torch.equal(whole[16:, 16:32], part)


def test_better_than_gptq():
    W, H = problem(32, 64)
    for bits in (2, 4):
        found = QTIP(bits).quantise([LayerWeight(name="a", W=W)], H)[0].weight
        assert proxy_loss(W - found, H) < 0.7 * proxy_loss(W - gptq(W, H, bits), H)


@pytest.mark.parametrize("shape", [(1, 1), (17, 40), (40, 17)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_any_shape(shape, calibrated):
    W, H = problem(*shape)
    found = QTIP(4).quantise([LayerWeight(name="a", W=W)], H if calibrated else None)[0]
    assert found.weight.shape == W.shape
    assert (found.weight - W).norm() < 0.3 * W.norm() + 0.1
    padded = [-(-side // 16) * 16 for side in shape]
    assert found.budget.payload == padded[0] * padded[1] // 2
    assert found.budget.total == found.budget.payload + 12


def test_nothing_becomes_nothing():
    found = QTIPHybrid(2).quantise([LayerWeight(name="a", W=torch.zeros(16, 16))], torch.eye(16))
    assert found[0].weight.isfinite().all()


def test_layers_do_not_depend_on_their_company():
    (W, H), (V, _) = problem(16, 32), problem(32, 32, seed=1)
    layers = [LayerWeight(name="a", W=W), LayerWeight(name="b", W=V)]
    together = QTIPHybrid(2).quantise(layers, H)
    alone = QTIPHybrid(2).quantise(layers[1:], H)
    assert torch.equal(together[1].weight, alone[0].weight)


def test_seeds_differ():
    W, _ = problem(16, 32)
    layer = LayerWeight(name="a", W=W)
    one, two, again = (QTIPHybrid(4, seed=s).quantise([layer], None)[0].weight for s in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
