"""Our rivals beside those of the tools that people use, where these are installed.

None of them is a dependency: pip install --no-deps hqq llmcompressor compressed-tensors termcolor
loguru is enough for a processor.
"""

import pytest
import torch

from nwc.methods.awq import best_scales
from nwc.methods.gptq import gptq
from nwc.methods.rtn import round_in_groups
from nwc.numerics.ldlq import DAMPING_LADDER, proxy_loss

pytestmark = pytest.mark.filterwarnings("ignore")


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    power = torch.exp(torch.randn(n, generator=generator))
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    X = X * power
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


def same(ours, theirs, W):
    """Equal, but for scales that we round to FP16 and for what lies between two codes."""
    step = (W.amax() - W.amin()) / 15
    off = (ours - theirs).abs() > 0.05 * step
    return off.float().mean() < 0.02 and (ours - theirs).norm() < 0.1 * (W - ours).norm()


def test_rtn_is_hqq_without_its_search():
    core = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    W, _ = problem(64, 256)
    codes, meta = core.Quantizer.quantize(
        W, nbits=4, group_size=128, optimize=False, round_zero=True, axis=1,
        bitpack=False, compute_dtype=torch.float32, device="cpu",
    )  # fmt: skip
    theirs = ((codes.float() - meta["zero"]) * meta["scale"]).reshape(meta["shape"])
    assert same(round_in_groups(W, 4), theirs.float(), W)


def llmcompressor_gptq(W, H, bits):
    gptq_quantize = pytest.importorskip(
        "llmcompressor.modifiers.gptq.gptq_quantize", reason="llmcompressor is not installed"
    )
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.observers import Observer

    arguments = QuantizationArgs(num_bits=bits, symmetric=False, strategy="group", group_size=128)
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False).requires_grad_(False)
    layer.weight.copy_(W)
    layer.weight_observer = Observer.load_from_registry(
        "memoryless_minmax", base_name="weight", args=arguments
    )
    layer.weight_observer(layer.weight)
    _, found = gptq_quantize.quantize_weight(
        layer, arguments, H.clone(), percdamp=DAMPING_LADDER[0]
    )
    return found["weight"]


def test_gptq_of_one_group_is_that_of_llmcompressor():
    # A step of 1/4 and a zero point of 7 in every row, so that FP16 rounds nothing: one code that
    # tips over changes all after it.
    W, H = problem(64, 128)
    W = W.clamp(-1.75, 2)
    W[:, 0], W[:, 1] = -1.75, 2
    ours, theirs = gptq(W, H, 4), llmcompressor_gptq(W, H, 4)
    assert (ours == theirs).all(1).float().mean() > 0.9
    assert not (round_in_groups(W, 4) == theirs).all(1).any()


def test_gptq_is_about_as_good_as_that_of_llmcompressor():
    # Which makes the grids of all groups beforehand, from the weights as they are.
    W, H = problem(64, 512)
    ours, theirs, rounded = (
        proxy_loss(W - found, H)
        for found in (gptq(W, H, 4), llmcompressor_gptq(W, H, 4), round_in_groups(W, 4))
    )
    assert 2 / 3 < ours / theirs < 3 / 2
    assert max(ours, theirs) < rounded


def test_awq_scales_round_better_than_none_in_hqq_too():
    # The scales are good for anyone's rounding, not only for ours.
    core = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    W, H = problem(64, 256)

    def rounded(W):
        codes, meta = core.Quantizer.quantize(
            W, nbits=3, group_size=128, optimize=False, round_zero=True, axis=1,
            bitpack=False, compute_dtype=torch.float32, device="cpu",
        )  # fmt: skip
        return ((codes.float() - meta["zero"]) * meta["scale"]).reshape(meta["shape"]).float()

    s = best_scales(W, H, 3)
    assert proxy_loss(W - rounded(W * s) / s, H) < 0.8 * proxy_loss(W - rounded(W), H)
