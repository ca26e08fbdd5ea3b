"""The state dict has upstream's names for saving and loading, and torch's own functions for state dicts work."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

import openmythos
from tests.io.checkpoints import ATTENTION, DTYPES, assert_same, model_of, weights
from tests.models import config, tokens
from tests.upstream.oracle import pair


def fresh(attn_type: str) -> openmythos.OpenMythos:
    """Another model of the same shape, with other weights."""
    return model_of(attn_type, seed=9)


@pytest.mark.parametrize("attn_type", ATTENTION)
def test_upstream_and_ours_strict_both_ways(attn_type: str) -> None:
    theirs, _ = pair(attn_type)
    ours = fresh(attn_type)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    expected = {name: value for name, value in theirs.state_dict().items() if not value.is_complex()}
    assert set(weights(ours)) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in weights(ours).items())
    back, _ = pair(attn_type, seed=5)
    back.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"full_state_dict": True, "cpu_offload": True}], ids=["plain", "full-on-cpu"])
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_distributed_get_and_set(attn_type: str, options: dict[str, bool]) -> None:
    model, other = model_of(attn_type), fresh(attn_type)
    state = get_model_state_dict(model, options=StateDictOptions(**options))
    assert list(state) == list(model.state_dict())
    set_model_state_dict(other, state, options=StateDictOptions(strict=True, **options))
    assert_same(other, weights(model))


@pytest.mark.parametrize("attn_type", ATTENTION)
def test_distributed_get_and_set_with_upstream(attn_type: str) -> None:
    theirs, ours = pair(attn_type)
    other = fresh(attn_type)
    set_model_state_dict(other, get_model_state_dict(theirs), options=StateDictOptions(strict=True))
    assert_same(other, weights(ours))
    back, _ = pair(attn_type, seed=5)
    set_model_state_dict(back, get_model_state_dict(other), options=StateDictOptions(strict=True))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_place", [False, True], ids=["set", "in-place"])
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_distributed_folder(tmp_path: Path, attn_type: str, in_place: bool) -> None:
    model, other = model_of(attn_type), fresh(attn_type)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path)
    state = {"model": other.state_dict() if in_place else get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=tmp_path)
    if not in_place:
        set_model_state_dict(other, state["model"])
    assert_same(other, weights(model))


def test_distributed_optimizer_state_has_the_stacked_names() -> None:
    model, other = model_of(), fresh("mla")
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (model, other)]
    model(tokens(2, 5)).square().mean().backward()
    optimizers[0].step()
    model_state, optimizer_state = get_state_dict(model, optimizers[0])
    assert "recurrent.block.ffn.gate_up" in optimizer_state["state"]
    set_state_dict(other, optimizers[1], model_state_dict=model_state, optim_state_dict=optimizer_state)
    assert_same(other, weights(model))
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizers[0].state[parameter]["exp_avg"], optimizers[1].state[twin]["exp_avg"])


@pytest.mark.parametrize("attn_type", ATTENTION)
def test_assign(attn_type: str) -> None:
    model, other = model_of(attn_type), fresh(attn_type)
    expected = weights(model)
    other.load_state_dict(model.state_dict(), assign=True)
    assert_same(other, expected)
    assert other.head.weight is other.embed.weight
    assert other.embed.weight.data_ptr() == model.embed.weight.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ["to_empty", "assign"])
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_from_the_meta_device(attn_type: str, way: str, dtype: torch.dtype) -> None:
    model = model_of(attn_type, dtype)
    with torch.device("meta"):
        other = openmythos.OpenMythos(config(attn_type)).to(dtype)
    if way == "to_empty":
        other = other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict(), assign=way == "assign")
    assert_same(other, weights(model))
    assert other.head.weight is other.embed.weight
    with torch.no_grad():
        assert torch.equal(other.eval()(tokens(2, 9)), model(tokens(2, 9)))


@pytest.mark.parametrize("attn_type", ATTENTION)
def test_deepcopy_is_independent(attn_type: str) -> None:
    model = model_of(attn_type)
    expected = weights(model)
    twin = copy.deepcopy(model)
    assert_same(twin, expected)
    assert twin.head.weight is twin.embed.weight
    with torch.no_grad():
        for expert in twin.recurrent.block.ffn.routed_experts:
            expert.gate.weight.zero_()
    assert not twin.recurrent.block.ffn.gate_up[:, 0].any()
    assert_same(model, expected)


@pytest.mark.parametrize("attn_type", ATTENTION)
def test_functional_call(attn_type: str) -> None:
    model, other = model_of(attn_type), fresh(attn_type)
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = weights(other)
    with torch.no_grad():
        got = torch.func.functional_call(other.eval(), values, (tokens(2, 9),))
        assert torch.equal(got, model(tokens(2, 9)))
    assert_same(other, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_to_dtype(attn_type: str, dtype: torch.dtype) -> None:
    model = model_of(attn_type)
    expected = {name: value.to(dtype) for name, value in weights(model).items()}
    rope = model.rope.clone()
    assert_same(model.to(dtype), expected)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.rope, rope)


def test_assign_keeps_an_untied_head() -> None:
    model, other = model_of(), fresh("mla")
    for each in (model, other):
        each.head.weight = torch.nn.Parameter(torch.randn(101, 48))
    other.load_state_dict(model.state_dict(), assign=True)
    assert_same(other, weights(model))
