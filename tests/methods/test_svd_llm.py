import itertools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.errors import ConfigError
from nwc.methods.base import LayerWeight
from nwc.methods.dense import Matrix
from nwc.methods.svd_llm import SVDLLM, SVDLLMV2, allocate, rank_for
from nwc.numerics.ldlq import DAMPING_LADDER, proxy_loss
from nwc.numerics.low_rank import cholesky_root, singular_values


def problem(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(m, n, generator=generator), X.T @ X / len(X)


@pytest.mark.parametrize("method", [SVDLLM, SVDLLMV2])
def test_loss_is_the_root_of_the_squares_dropped(method):
    W, H = problem(64, 96)
    found = method(4).quantise([LayerWeight(name="a", W=W)], H)[0]
    rank = rank_for(64, 96, 4 / 16)
    assert torch.linalg.matrix_rank(found.weight) == rank
    H = H + DAMPING_LADDER[0] * H.diagonal().mean() * torch.eye(96)
    loss = proxy_loss(W - found.weight, H) ** 0.5
    dropped = singular_values(W, cholesky_root(H))[rank:]
    assert loss == pytest.approx(float(dropped.square().sum() ** 0.5), rel=5e-3)


@pytest.mark.parametrize("method", [SVDLLM, SVDLLMV2])
def test_better_than_without_the_inputs(method):
    W, H = problem(64, 96)
    layer = LayerWeight(name="a", W=W)
    seen, blind = (method(6).quantise([layer], h)[0].weight for h in (H, None))
    assert proxy_loss(W - seen, H) < 0.7 * proxy_loss(W - blind, H)
    assert (W - blind).norm() < (W - seen).norm()


def test_a_matrix_of_that_rank_is_kept():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(64, 5, generator=generator) @ torch.randn(5, 96, generator=generator)
    _, H = problem(1, 96)
    found = SVDLLM(4).quantise([LayerWeight(name="a", W=W)], H)[0].weight
    assert (found - W).norm() < 2e-3 * W.norm()


@pytest.mark.parametrize(("asked", "nominal"), [(4, 4), (4.1, 4), (12.8, 12.75), (16, 16)])
def test_bits(asked, nominal):
    method = SVDLLM(asked)
    assert method.nominal_bits == nominal
    found = method.quantise([LayerWeight(name="a", W=torch.randn(200, 300))], None)[0]
    rank = math.floor(nominal / 16 * 200 * 300 / 500)
    assert found.budget.total == 2 * rank * 500
    assert nominal - 0.14 < 8 * found.budget.total / 60_000 <= nominal


def test_published_ranks():
    # 20 % of Llama's parameters gone: 0.8 of m n / (m + n).
    assert rank_for(4096, 4096, 0.8) == 1638
    assert rank_for(11008, 4096, 0.8) == 2388
    assert rank_for(3, 2, 0.01) == 1


def test_factors_out_of_range():
    layer = LayerWeight(name="loud", W=torch.full((4, 4), 1e30))
    with pytest.raises(ConfigError, match="loud: factors of low rank leave the range"):
        SVDLLM(8).quantise([layer], None)


def test_shares_by_the_printed_formula():
    losses, kept = [30.0, 400.0, 9000.0], 0.7
    inverse = [1 / math.log(x) for x in losses]
    wanted = [1 - 3 * (1 - kept) * x / sum(inverse) for x in inverse]
    assert allocate(losses, kept) == pytest.approx(wanted)
    assert wanted == sorted(wanted)


@pytest.mark.parametrize("kept", [0.01, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("losses", [[1e-3, 1e6], [5.0], [3.0, 3.0, 1e9], [0.0, 1e3, 1e4]])
def test_shares_keep_their_mean(losses, kept):
    found = allocate(losses, kept, least=0.02)
    assert sum(found) / len(found) == pytest.approx(kept)
    assert all(min(0.02, kept) - 1e-9 <= share <= 1 for share in found)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(found))


def test_the_lossier_matrix_keeps_more(llama):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    name = "model.layers.{}.mlp.up_proj.weight"
    matrices = [Matrix(name.format(i), "up", name.format(i), lambda p: p) for i in range(3)]
    with torch.no_grad():
        model.get_parameter(name.format(1)).mul_(30)
    windows = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))
    method = SVDLLMV2(4)
    method.matrices = matrices
    assert method.prepare(model, windows) is None
    shares = [method.shares[m.name] for m in matrices]
    assert shares[1] > shares[0]
    assert sum(shares) / 3 == pytest.approx(0.25)

    layers = [
        LayerWeight(name=m.name, W=model.get_parameter(m.parameter).detach()) for m in matrices
    ]
    sizes = [found.budget.total for found in method.quantise(layers, None)]
    assert sizes[1] > sizes[0]
