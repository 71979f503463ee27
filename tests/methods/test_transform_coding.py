import numpy as np
import pytest
import torch

from nwc.codec.compressed import CompressedTensor
from nwc.codec.config import CodecConfig
from nwc.codec.model import WeightCodec
from nwc.coding.rate import ideal_bits
from nwc.coding.tables import TableBank
from nwc.errors import CalibrationError
from nwc.formats.shipped import shipped_codec
from nwc.kernels.backend import decode_tile
from nwc.methods.base import LayerWeight
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural
from nwc.numerics.ldlq import proxy_loss

RESIDUAL = CodecConfig(kind="residual", width=32, blocks=2, lam=100.0, nominal_log2_gain=2.0)


def method(name):
    torch.manual_seed(0)
    if name == "ecsq":
        return Ecsq()
    return Neural(shipped_codec("default", 4.0)[0] if name == "default" else WeightCodec(RESIDUAL))


def hessian(n, seed=0):
    """Correlated inputs whose columns differ in power by four orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    power = torch.logspace(-1, 1, n)[torch.randperm(n, generator=generator)]
    X = (
        torch.randn(4 * n, n, generator=generator) + torch.randn(4 * n, 1, generator=generator)
    ) * power
    return X.T @ X / len(X)


def matrix(m, n, seed=1):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def compress(how, matrices, H, gain=3.0):
    bank = TableBank()
    layers = [LayerWeight(name=f"layer {i}", W=W) for i, W in enumerate(matrices)]
    results = how.compress(layers, H, gain, bank)
    assert [r.name for r in results] == [layer.name for layer in layers]
    return [CompressedTensor(r.data, how.codec, bank) for r in results]


every_method = pytest.mark.parametrize("name", ["default", "ecsq", "residual"])


@every_method
@pytest.mark.parametrize("calibrated", [True, False])
def test_reported_errors_are_those_of_the_decoded_weight(name, calibrated):
    H = hessian(60) if calibrated else None
    # Layers that share an input are done together; their sizes need not agree.
    matrices = [matrix(64, 60), matrix(33, 60, seed=2) / 50]
    for W, tensor in zip(matrices, compress(method(name), matrices, H), strict=True):
        E = W - tensor.weight()
        assert tensor.errors.relative == pytest.approx(float(E.norm() / W.norm()), rel=1e-4)
        if H is None:
            assert np.isnan(tensor.errors.hessian)
        else:
            expected = proxy_loss(E, H) / proxy_loss(W, H)
            assert tensor.errors.hessian == pytest.approx(expected, rel=1e-3)


@every_method
def test_stacked_layers_are_quantised_as_they_would_be_alone(name):
    matrices, H = [matrix(64, 60), matrix(48, 60, seed=2)], hessian(60)
    together = compress(method(name), matrices, H)
    for W, tensor in zip(matrices, together, strict=True):
        alone = compress(method(name), [W], H)[0]
        difference = (alone.weight() - tensor.weight()).norm() / W.norm()
        assert difference < 0.2 * tensor.errors.relative  # rounding of a sum may tip a symbol


@every_method
def test_feedback_lowers_the_output_error(name):
    W, H = matrix(64, 60), hessian(60)
    with_feedback = W - compress(method(name), [W], H, 2.0)[0].weight()
    without = W - compress(method(name), [W], None, 2.0)[0].weight()
    assert proxy_loss(with_feedback, H) < 0.8 * proxy_loss(without, H)


@every_method
def test_a_unit_of_gain_is_a_bit(name):
    W = matrix(256, 128)
    sizes = [compress(method(name), [W], None, g)[0].stream.head.words for g in (1.5, 2.5)]
    assert 16 * (sizes[1] - sizes[0]) / W.numel() == pytest.approx(1, abs=0.05)


def test_water_filling_beats_equal_steps_at_equal_size():
    W, H = matrix(256, 128) * torch.logspace(1, -1, 128), hessian(128)
    ours = compress(method("default"), [W], H, 3.0)[0]
    size, low, high = len(ours.stream.container.view), 0.0, 5.0
    for _ in range(12):
        gain = (low + high) / 2
        scalar = compress(method("ecsq"), [W], H, gain)[0]
        shorter = len(scalar.stream.container.view) < size
        low, high = (gain, high) if shorter else (low, gain)
    assert len(scalar.stream.container.view) == pytest.approx(size, rel=0.01)
    assert ours.errors.hessian < 0.9 * scalar.errors.hessian


@every_method
@pytest.mark.parametrize("calibrated", [True, False])
def test_odd_matrices(name, calibrated):
    zeros = matrix(64, 48)
    zeros[:, ::4] = 0
    outlier = matrix(40, 48)
    outlier[7, 9] = 1e4
    shapes = [matrix(1, 48), matrix(17, 48), torch.zeros(32, 48), zeros, outlier]
    for W in [*shapes, matrix(64, 48) * 1e-30, matrix(64, 48) * 1e30, matrix(200, 1)]:
        H = hessian(W.shape[1]) if calibrated else None
        found = compress(method(name), [W], H, 3.0)[0].weight()
        assert found.shape == W.shape
        assert torch.isfinite(found).all()
        if name != "residual":  # which is not trained
            assert float((found - W).abs().max()) <= 0.5 * float(W.abs().max())
        assert not found[:, W.abs().amax(dim=0) == 0].any() or name == "residual" or calibrated


@every_method
def test_payload_is_the_ideal_code_length(name):
    tensor = compress(method(name), [matrix(512, 256)], hessian(256))[0]
    payload = 16 * tensor.stream.head.words
    assert payload < 1.003 * ideal_bits(tensor.stream, decode_tile)


@every_method
def test_estimate_is_near_the_payload(name):
    W, how = matrix(256, 256), method(name)
    payload = 16 * compress(how, [W], None, 2.0)[0].stream.head.words / W.numel()
    assert how.estimate(LayerWeight(name="", W=W), None, 2.0) == pytest.approx(payload, abs=0.06)


def test_an_unusable_hessian_names_the_layer():
    H = torch.full((8, 8), float("nan"))
    with pytest.raises(CalibrationError, match=r"layer 0: .*non-finite"):
        compress(method("ecsq"), [matrix(16, 8)], H)


def test_without_feedback_a_tile_is_one_path():
    # Short columns: deciding each by itself would cost a bit a lane and column.
    W, how = matrix(32, 400), method("default")
    tensor = compress(how, [W], None, 3.0)[0]
    bits = 16 * tensor.stream.head.words / W.numel()
    E = W - tensor.weight()
    gap = bits + 0.5 * float((E.square().mean() / W.square().mean()).log2())
    assert gap < 0.13  # 0.24 column by column
    assert tensor.errors.relative == pytest.approx(float(E.norm() / W.norm()), rel=1e-5)


@pytest.mark.parametrize("sizes", [(33, 70), (64,), (5000,)])
def test_tiles_and_layers_are_paths_of_their_own(sizes):
    how = method("default")
    matrices = [matrix(m, 24, seed=m) for m in sizes]
    for W, tensor in zip(matrices, compress(how, matrices, None, 2.5), strict=True):
        E = W - tensor.weight()
        assert tensor.errors.relative == pytest.approx(float(E.norm() / W.norm()), rel=1e-5)
        assert tensor.errors.relative < 0.06
