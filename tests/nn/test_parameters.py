"""Stacked experts and their live views, copies, names, and compilation of the whole model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openmythos
from tests.models import small_model, tokens
from tests.tolerances import assert_within
from tests.upstream.oracle import pair

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


def test_experts_are_live_views() -> None:
    theirs, ours = pair("mla")
    with torch.no_grad():
        for model in (theirs, ours):
            expert = model.recurrent.block.ffn.routed_experts[2]
            expert.gate.weight.mul_(1.5)
            expert.down.weight.copy_(torch.ones_like(expert.down.weight) * 0.1)
            model.recurrent.block.ffn.routed_experts[-1].up.weight[3] = 0.25
        assert_within("logits", ours(tokens(2, 7)), theirs(tokens(2, 7)), 1e-5)
        moe = ours.recurrent.block.ffn
        moe.gate_up[4, 1].fill_(7)
        assert moe.routed_experts[4].up.weight.eq(7).all()


def test_experts_index_iterate_and_call_like_a_module_list() -> None:
    theirs, ours = pair("mla")
    one, other = theirs.recurrent.block.ffn.routed_experts, ours.recurrent.block.ffn.routed_experts
    assert len(other) == len(one) == 5
    x = torch.randn(3, 48)
    for a, b in zip(one, other, strict=True):
        assert isinstance(b, openmythos.Expert)
        assert [name for name, _ in b.named_parameters()] == [name for name, _ in a.named_parameters()]
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        with torch.no_grad():
            assert_within("output", b(x), a(x), 1e-6)
    assert other[1] is other[1]
    assert other[-1] is other[4]
    assert [part is other[i] for i, part in zip((1, 2, 3), other[1:4], strict=True)] == [True] * 3
    assert sum(part.numel() for part in other.parameters()) == sum(part.numel() for part in one.parameters())
    with pytest.raises(IndexError, match="expert 5"):
        other[5]


def test_an_assigned_expert_is_called() -> None:
    theirs, ours = pair("mla")
    torch.manual_seed(4)
    new = nn.Sequential(nn.Linear(48, 48), nn.Tanh())
    for model in (theirs, ours):
        model.recurrent.block.ffn.routed_experts[3] = new
    with torch.no_grad():
        assert_within("logits", ours(tokens(2, 7)), theirs(tokens(2, 7)), 1e-5)


def test_gradients_through_the_views_arrive_at_the_stack() -> None:
    moe = small_model().recurrent.block.ffn
    x = torch.randn(4, 48)
    moe.routed_experts[2](x).square().sum().backward()
    assert moe.gate_up.grad[2].abs().sum() > 0
    assert moe.down.grad[2].abs().sum() > 0
    assert moe.gate_up.grad[[0, 1, 3, 4]].abs().sum() == 0


@ATTENTION
def test_names_are_not_duplicated(attn_type: str) -> None:
    model = small_model(attn_type)
    _ = model.recurrent.block.ffn.routed_experts[1]
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert not [name for name in names if "routed_experts" in name]
    assert {name for name in names if "ffn." in name and "shared" not in name and "recurrent" in name} == {
        f"recurrent.block.ffn.{part}" for part in ("router.weight", "gate_up", "down")
    }
    pointers = [part.data_ptr() for part in model.parameters()]
    assert len(pointers) == len(set(pointers))
    assert model.head.weight is model.embed.weight


@ATTENTION
def test_deepcopy_is_independent(attn_type: str) -> None:
    model = small_model(attn_type)
    _ = model.recurrent.block.ffn.routed_experts[1]
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embed.weight
    with torch.no_grad():
        want = model(tokens(2, 7))
        assert torch.equal(twin(tokens(2, 7)), want)
        for part in twin.recurrent.block.ffn.routed_experts[1].parameters():
            part.zero_()
        assert torch.equal(model(tokens(2, 7)), want)
        assert (twin(tokens(2, 7)) - want).abs().max() > 1e-3


def test_a_deepcopy_keeps_a_replaced_expert_apart() -> None:
    model = small_model()
    model.recurrent.block.ffn.routed_experts[1].register_forward_hook(lambda _m, _a, output: output * 0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert_within("logits", twin(tokens(2, 7)), model(tokens(2, 7)), 1e-6)


@ATTENTION
def test_functional_call_uses_the_given_weights(attn_type: str) -> None:
    model, other = small_model(attn_type), small_model(attn_type, seed=5)
    with torch.no_grad():
        found = torch.func.functional_call(model, dict(other.named_parameters()), (tokens(2, 7),))
        want = torch.func.functional_call(
            model, dict(other.named_parameters()) | dict(other.named_buffers()), (tokens(2, 7),)
        )
        assert (found - model(tokens(2, 7))).abs().max() > 1e-2
        assert_within("logits", want, other(tokens(2, 7)), 1e-6)


@pytest.mark.unpoisoned
@ATTENTION
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_compiles_without_a_graph_break(attn_type: str, grad: bool) -> None:
    torch._dynamo.reset()
    model = small_model(attn_type)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = tokens(2, 7)
    with torch.set_grad_enabled(grad):
        found, want = compiled(ids, n_loops=3), model(ids, n_loops=3)
    assert_within("logits", found, want, 1e-5)
    if grad:
        gradients = [torch.autograd.grad(out.square().mean(), list(model.parameters())) for out in (found, want)]
        for (name, _), a, b in zip(model.named_parameters(), *gradients, strict=True):
            assert_within(f"gradient of {name}", a, b, 1e-4)


@pytest.mark.unpoisoned
@ATTENTION
def test_compiles_for_any_length(attn_type: str) -> None:
    torch._dynamo.reset()
    model = small_model(attn_type)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for length in (7, 9, 13):
            assert_within("logits", compiled(tokens(2, length), n_loops=2), model(tokens(2, length), n_loops=2), 1e-5)


@pytest.mark.slow
@pytest.mark.unpoisoned
@ATTENTION
def test_inductor(attn_type: str) -> None:
    torch._dynamo.reset()
    model = small_model(attn_type)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_within("logits", compiled(tokens(2, 7), n_loops=2), model(tokens(2, 7), n_loops=2), 1e-5)


def test_an_optimiser_step_moves_every_parameter() -> None:
    model = small_model().train()
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = tokens(4, 24)
    F.cross_entropy(model(ids, n_loops=3)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimiser.step()
    for name, part in model.named_parameters():
        assert not torch.equal(part, before[name]), name


def test_an_expert_without_tokens_gets_a_gradient_of_zero() -> None:
    """Upstream leaves it None, which breaks collectives that expect one."""
    model = small_model(n_experts=13, n_experts_per_tok=1)
    model(tokens(1, 2), n_loops=1).sum().backward()
    moe = model.recurrent.block.ffn
    empty = moe.gate_up.grad.flatten(1).eq(0).all(1)
    assert 11 <= int(empty.sum()) <= 12
    assert all(part.grad is not None for part in model.parameters())
