"""Mixtures of experts of three families: plan, inputs, order."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from nwc.compression.experts import role, use_experts_function
from nwc.compression.plan import make_plan
from nwc.compression.recorder import InputRecorder
from nwc.compression.recovery import ORDERS, stages
from nwc.compression.source import SourceCheckpoint
from nwc.compression.stream import BlockStream
from nwc.compression.unit import forward


@pytest.fixture
def plan(experts):
    return make_plan(SourceCheckpoint(experts))


def recorded(source, plan, tokens, tmp_path, number=0):
    """Groups of a block, from the stream."""
    stream = BlockStream(source, plan.skeleton, tokens)
    features = stream.features(tmp_path / "0.bin")
    stream.embed(features)
    with stream.block(number) as block:
        recorder = InputRecorder(block.module, plan.units[number])
        forward(block, features, None, lambda note: None)
        return recorder.close()


def test_every_expert_and_router_is_planned(experts, plan):
    source = SourceCheckpoint(experts)
    planned = sum(t.parameters for t in plan.tensors)
    matrices = sum(
        source.count(key)
        for key, shape in source.shapes.items()
        if len(shape) >= 2 and "embed" not in key and "bias" not in key
    )
    assert planned == matrices
    assert sorted({t.key for t in plan.tensors} | set(plan.kept)) == sorted(source.shapes)
    routers = [t for t in plan.tensors if "router" in t.name or t.name.endswith("gate.weight")]
    assert len(routers) == 2
    assert all((t.m, t.n, t.role) == (4, 64, "") for t in routers)
    roles = {t.role for t in plan.tensors if t.role}
    fused = experts.name == "gpt_oss"
    assert roles == ({"gate_up", "down"} if fused else {"gate", "up", "down"})


def test_slots_are_the_matrices_of_the_checkpoint(experts, plan, tmp_path):
    source = SourceCheckpoint(experts)
    stream = BlockStream(source, plan.skeleton, torch.zeros(2, 16, dtype=torch.long))
    for number, unit in enumerate(plan.units):
        with stream.block(number) as block:
            for t in unit:
                W = t.slot.view(block.module.get_parameter(t.slot.parameter).data)
                assert torch.equal(W.float(), source.matrix(t.key, t.transposed, t.part)), t.name


def test_the_experts_function_is_the_models_own(experts):
    tokens = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eager = AutoModelForCausalLM.from_pretrained(
            experts, dtype=torch.float32, experts_implementation="eager"
        )(input_ids=tokens).logits
        model = AutoModelForCausalLM.from_pretrained(experts, dtype=torch.float32)
        use_experts_function(model)
        ours = model(input_ids=tokens).logits
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


def test_hessians_of_experts_are_those_of_their_tokens(experts, plan, tmp_path):
    tokens = torch.randint(256, (16, 32), generator=torch.Generator().manual_seed(0))
    groups = recorded(SourceCheckpoint(experts), plan, tokens, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        experts, dtype=torch.bfloat16, experts_implementation="eager"
    )
    seen = {}

    def routed(_module, args):
        seen["hidden"], seen["index"] = args[0].float(), args[1]

    module = next(m for n, m in model.named_modules() if n.endswith("layers.0.mlp.experts"))
    module.register_forward_pre_hook(routed)
    with torch.no_grad():
        model(input_ids=tokens)
    first = [g for g in groups if g.tensors[0].role in ("gate", "up", "gate_up")]
    assert len(first) == 4
    for group in first:
        e = group.tensors[0].slot.expert
        x = seen["hidden"][(seen["index"] == e).any(dim=1)]
        # BF16 rounds differently in other batches, which can route a token elsewhere.
        assert group.hessian.tokens == pytest.approx(len(x), abs=4)
        if group.prior is None:
            H, wanted = group.hessian.finish(), x.T @ x / len(x)
            assert (H - wanted).norm() < 0.05 * wanted.norm()
    downs = [g for g in groups if g.tensors[0].role == "down"]
    tokens_of = {g.tensors[0].slot.expert: g.hessian.tokens for g in first}
    assert {g.tensors[0].slot.expert: g.hessian.tokens for g in downs} == tokens_of
    assert sum(tokens_of.values()) == 2 * tokens.numel()


def test_starved_experts_share_the_mean(experts, plan, tmp_path):
    # 16 tokens through 2 of 4 experts each: fewer than the 64 inputs of any.
    tokens = torch.randint(256, (1, 16), generator=torch.Generator().manual_seed(0))
    groups = recorded(SourceCheckpoint(experts), plan, tokens, tmp_path)
    starved = [g for g in groups if g.tensors[0].role]
    assert all(g.prior is not None for g in starved)
    for role_is_down in (False, True):
        same = [g for g in starved if (g.tensors[0].role == "down") == role_is_down]
        assert len({id(g.prior) for g in same}) == 1
        sums = {id(g): g.hessian.tokens for g in same}
        total = sum(sums.values())
        priors = same[0].prior.clone()
        means = []
        for group in same:
            before = group.hessian.tokens
            H = group.hessian.finish(group.prior)
            n = group.hessian.n
            means.append(
                before * (H * n - (n - before) * priors) / max(before, 1) if before else 0
            )
        torch.testing.assert_close(sum(means) / total, priors, rtol=1e-3, atol=1e-4)


def test_order_of_the_paper(experts, plan, tmp_path):
    tokens = torch.zeros(4, 16, dtype=torch.long)
    groups = recorded(SourceCheckpoint(experts), plan, tokens, tmp_path)
    parts = stages(groups, ORDERS["experts"])
    roles = [{t.role for g in part for t in g.tensors} for part in parts]
    fused = experts.name == "gpt_oss"
    assert roles == (
        [{""}, {"gate_up"}, {"down"}] if fused else [{""}, {"up"}, {"gate"}, {"down"}]
    )
    listed = [t.name for part in parts for g in part for t in g.tensors]
    assert sorted(listed) == sorted(t.name for t in plan.units[0])


def test_roles():
    assert role("model.layers.0.mlp.experts.7.gate_proj.weight", "gate_up_proj") == "gate"
    assert role("model.layers.0.block_sparse_moe.experts.7.w2.weight", "down_proj") == "down"
