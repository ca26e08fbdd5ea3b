"""observe: routing counts and loops of every forward, compiled and hooked ones included, and recompute."""

from __future__ import annotations

import pytest
import torch

import openmythos
from openmythos import ops
from tests.models import small_model, tokens


@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "hooked"])
def test_counts_and_loops(hooked: bool) -> None:
    model, ids = small_model(), tokens(2, 7)
    with torch.no_grad():
        want = model(ids, n_loops=3)
    if hooked:
        model.recurrent.block.ffn.register_forward_hook(lambda *_: None)
        model.recurrent.act.register_forward_hook(lambda *_: None)
    cache: dict = {}
    with torch.no_grad(), openmythos.observe(model) as seen:
        found = model(ids, n_loops=3, kv_cache=cache)
        model(tokens(2, 1), n_loops=3, kv_cache=cache, start_pos=7)
    assert (found - want).abs().max() < 1e-4
    assert seen.loops == [3, 3]
    assert [int(counts.sum()) for counts in seen.expert_counts] == [2 * 2 * 7] * 3 + [2 * 2] * 3
    assert all(counts.shape == (5,) for counts in seen.expert_counts)
    with torch.no_grad():
        model(ids, n_loops=3)
    assert len(seen.loops) == 2, "nothing is collected outside the block"


def test_counts_are_those_of_the_router() -> None:
    ffn = openmythos.MoEFFN(small_model().cfg)
    x = torch.randn(2, 5, 48)
    with torch.no_grad(), openmythos.observe(ffn) as seen:
        ffn.router_bias.normal_()
        ffn(x)
        _, _, want = ops.moe_route(x.view(10, 48) @ ffn.router.weight.T, ffn.router_bias, 2)
    assert torch.equal(seen.expert_counts[0], want)


def test_an_early_exit_is_counted() -> None:
    model = small_model()
    with torch.no_grad():
        model.recurrent.act.halt.bias.fill_(20.0)
        with openmythos.observe(model) as seen:
            model(tokens(2, 7))
    assert seen.loops == [1]
    assert len(seen.expert_counts) == 1


def test_training_with_gradients_is_observed() -> None:
    model = small_model()
    with openmythos.observe(model) as seen:
        model(tokens(2, 7), n_loops=2).sum().backward()
    assert seen.loops == [2]
    assert not seen.expert_counts[0].requires_grad


@pytest.mark.unpoisoned
def test_a_compiled_model_is_observed() -> None:
    torch._dynamo.reset()
    model, ids = small_model(), tokens(2, 7)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = model(ids, n_loops=2)
    assert (compiled(ids, n_loops=2) - want).abs().max() < 1e-4
    with openmythos.observe(model) as eager:
        model(ids, n_loops=2)
    for _ in range(2):
        with openmythos.observe(model) as seen:
            assert (compiled(ids, n_loops=2) - want).abs().max() < 1e-4
        assert seen.loops == [2]
        assert all(torch.equal(*pair) for pair in zip(seen.expert_counts, eager.expert_counts, strict=True))
    assert (compiled(ids, n_loops=2) - want).abs().max() < 1e-4


def test_blocks_nest_and_end_with_an_error() -> None:
    model, ids = small_model(), tokens(1, 3)
    with torch.no_grad(), openmythos.observe(model) as outer:
        with openmythos.observe(model) as inner:
            model(ids, n_loops=1)
        model(ids, n_loops=2)
        with pytest.raises(ValueError, match="n_loops"), openmythos.observe(model):
            model(ids, n_loops=0)
        model(ids, n_loops=1)
    assert (inner.loops, outer.loops) == ([1], [2, 1])
    assert "observation" not in vars(model.recurrent)


@pytest.mark.parametrize("recompute", [False, True])
def test_recompute_reaches_the_op(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, original = small_model(), [], ops.moe_experts

    def moe_experts(*args: object, recompute: bool = False) -> torch.Tensor:
        given.append(recompute)
        return original(*args, recompute=recompute)

    monkeypatch.setattr(ops, "moe_experts", moe_experts)
    model.recurrent.block.ffn.recompute = recompute
    model(tokens(2, 5), n_loops=2).sum().backward()
    assert given == [recompute] * 2
