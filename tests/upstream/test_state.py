"""Weights: one seed gives upstream's; state dicts have upstream's keys, shapes and dtypes and load strictly."""

from __future__ import annotations

import pytest
import torch

import openmythos
from tests.models import config, tokens
from tests.upstream.oracle import pair, upstream, upstream_config

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


@ATTENTION
@pytest.mark.parametrize("changes", [{}, {"n_shared_experts": 0}, {"n_experts": 3, "prelude_layers": 2}], ids=str)
def test_equal_seeds_give_equal_weights(attn_type: str, changes: dict) -> None:
    torch.manual_seed(3)
    theirs = upstream.OpenMythos(upstream_config(attn_type, **changes))
    their_next = torch.rand(3)
    torch.manual_seed(3)
    ours = openmythos.OpenMythos(config(attn_type, **changes))
    our_next = torch.rand(3)
    want, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == want.keys()
    for name in want:
        assert torch.equal(found[name], want[name]), name
    assert torch.equal(our_next, their_next), "the generator is left where upstream leaves it"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("GQAttention", lambda make: (make("gqa"),)),
        ("MLAttention", lambda make: (make("mla"),)),
        ("MoEFFN", lambda make: (make("mla"),)),
        ("Expert", lambda make: (17, 23)),
        ("LoRAAdapter", lambda make: (17, 3, 5)),
        ("LTIInjection", lambda make: (17,)),
        ("ACTHalting", lambda make: (17,)),
        ("RMSNorm", lambda make: (17,)),
        ("TransformerBlock", lambda make: (make("mla"), True)),
        ("RecurrentBlock", lambda make: (make("gqa"),)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_seeds_give_equal_modules(name: str, arguments) -> None:
    torch.manual_seed(5)
    theirs = getattr(upstream, name)(*arguments(upstream_config))
    torch.manual_seed(5)
    ours = getattr(openmythos.nn, name, None) or getattr(openmythos.nn.recurrent, name)
    ours = ours(*arguments(config))
    want, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[key], want[key]) for key in want)


@ATTENTION
def test_state_dict_has_upstreams_keys_shapes_and_dtypes(attn_type: str) -> None:
    theirs, ours = pair(attn_type)
    want, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        assert torch.equal(found[name], value), name
    assert ours.head.weight is ours.embed.weight


@ATTENTION
def test_strict_both_ways(attn_type: str) -> None:
    theirs, ours = pair(attn_type, seed=1)
    fresh = upstream.OpenMythos(upstream_config(attn_type)).eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        ids = tokens(2, 7)
        assert torch.equal(fresh(ids), theirs(ids))
    back = openmythos.OpenMythos(config(attn_type)).eval()
    back.load_state_dict(fresh.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))


@ATTENTION
def test_missing_and_unexpected_keys_are_named(attn_type: str) -> None:
    theirs, ours = pair(attn_type)
    gone, extra = "recurrent.block.ffn.routed_experts.1.up.weight", "recurrent.block.ffn.routed_experts.9.up.weight"
    state = theirs.state_dict()
    state[extra] = state.pop(gone)
    with pytest.raises(RuntimeError, match=rf"(?s)Missing.*{gone}.*Unexpected.*{extra}"):
        ours.load_state_dict(state, strict=True)
    state = theirs.state_dict()
    state[gone] = state[gone][:-1]
    with pytest.raises(RuntimeError, match=gone):
        ours.load_state_dict(state, strict=True)


@ATTENTION
def test_rotary_tables_equal(attn_type: str) -> None:
    theirs, ours = pair(attn_type)
    for name in ("freqs_cis", "freqs_cis_mla"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
