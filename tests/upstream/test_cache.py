"""Decoding with a cache equals upstream's, step by step, and so do the cache's contents."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models import tokens
from tests.tolerances import MODEL_LIMITS, ORACLE_FLOAT64, assert_close, assert_within
from tests.upstream.oracle import pair

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


@ATTENTION
@pytest.mark.parametrize("n_loops", [1, 4, 7])
def test_cached_decode_float64(attn_type: str, n_loops: int) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    ids = tokens(3, 14)
    their_cache, our_cache = {}, {}
    with torch.no_grad():
        for start, end in [(0, 5), *((i, i + 1) for i in range(5, 14))]:
            call = {"n_loops": n_loops, "start_pos": start}
            want = theirs(ids[:, start:end], kv_cache=their_cache, **call)
            found = ours(ids[:, start:end], kv_cache=our_cache, **call)
            assert_within(f"logits of {start}:{end}", found, want, ORACLE_FLOAT64)
    assert set(our_cache) == set(their_cache)
    assert len(our_cache) == len(their_cache) == 2 + n_loops


@ATTENTION
def test_cached_decode_float32(attn_type: str) -> None:
    theirs, ours = pair(attn_type)
    exact = copy.deepcopy(theirs).double()
    ids = tokens(2, 12)
    caches = [{}, {}, {}]
    with torch.no_grad():
        for start, end in [(0, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12)]:
            found, plain, want = (
                model(ids[:, start:end], kv_cache=cache, start_pos=start)
                for model, cache in zip((ours, theirs, exact), caches, strict=True)
            )
            assert_close(f"logits of {start}:{end}", found, want, plain, torch.float32, limits=MODEL_LIMITS)


def test_mla_entries_hold_the_normalised_latent_and_one_rope_key() -> None:
    theirs, ours = (model.double() for model in pair("mla"))
    ids = tokens(2, 9)
    their_cache, our_cache = {}, {}
    with torch.no_grad():
        theirs(ids, kv_cache=their_cache)
        ours(ids, kv_cache=our_cache)
        for key, entry in their_cache.items():
            attention = theirs.recurrent.block.attn
            if not key.startswith("recurrent"):
                stack, index = key.rsplit("_", 1)
                attention = getattr(theirs, stack)[int(index)].attn
            mine = our_cache[key]
            assert_within(f"{key} c_kv", mine["c_kv"], attention.kv_norm(entry["c_kv"]), ORACLE_FLOAT64)
            assert_within(f"{key} k_rope", mine["k_rope"], entry["k_rope"], ORACLE_FLOAT64)
            assert mine["k_rope"].shape == entry["k_rope"].shape
            assert mine["k_rope"].stride(2) == 0


def test_gqa_entries_hold_keys_and_values() -> None:
    theirs, ours = (model.double() for model in pair("gqa"))
    ids = tokens(2, 9)
    their_cache, our_cache = {}, {}
    with torch.no_grad():
        theirs(ids, kv_cache=their_cache)
        ours(ids, kv_cache=our_cache)
    for key, entry in their_cache.items():
        for name in ("k", "v"):
            assert_within(f"{key} {name}", our_cache[key][name], entry[name], ORACLE_FLOAT64)


@ATTENTION
@pytest.mark.parametrize("chunks", [(4, 4, 4), (1, 10, 1), (11, 1), (2, 3, 7)], ids=str)
def test_chunked_prefill_equals_upstreams_full_prefill(attn_type: str, chunks: tuple[int, ...]) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    ids = tokens(2, sum(chunks))
    cache, start, logits = {}, 0, []
    with torch.no_grad():
        want = theirs(ids, n_loops=5)
        for count in chunks:
            logits.append(ours(ids[:, start : start + count], n_loops=5, kv_cache=cache, start_pos=start))
            start += count
    assert_within("logits", torch.cat(logits, dim=1), want, ORACLE_FLOAT64)


@ATTENTION
def test_prefill_may_start_anywhere(attn_type: str) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    ids = tokens(1, 6)
    with torch.no_grad():
        want = theirs(ids, kv_cache={}, start_pos=17)
        assert_within("logits", ours(ids, kv_cache={}, start_pos=17), want, ORACLE_FLOAT64)


@ATTENTION
def test_a_cache_that_upstream_filled_is_continued(attn_type: str) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    ids = tokens(2, 12)
    with torch.no_grad():
        their_cache = {}
        theirs(ids[:, :8], kv_cache=their_cache)
        mixed = dict(their_cache)
        for start, end in [(8, 9), (9, 10), (10, 12)]:
            found = ours(ids[:, start:end], kv_cache=mixed, start_pos=start)
            want = theirs(ids[:, :end])[:, start:end]
            assert_within(f"logits of {start}:{end}", found, want, ORACLE_FLOAT64)


@ATTENTION
@pytest.mark.parametrize("module", ["prelude", "recurrent", "coda"])
def test_attention_alone_with_a_plain_dict(attn_type: str, module: str) -> None:
    theirs, ours = (model.double() for model in pair(attn_type))
    pick = {"prelude": lambda m: m.prelude[0], "recurrent": lambda m: m.recurrent.block, "coda": lambda m: m.coda[0]}
    their_attn, our_attn = (pick[module](model).attn for model in (theirs, ours))
    freqs = ours.freqs_cis_mla if attn_type == "mla" else ours.freqs_cis
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    their_cache, our_cache = {}, {}
    with torch.no_grad():
        for start, end in [(0, 4), (4, 9)]:
            rows = freqs[start:end]
            want = their_attn(x[:, start:end], rows, None, their_cache, "layer")
            assert_within("output", our_attn(x[:, start:end], rows, None, our_cache, "layer"), want, ORACLE_FLOAT64)
    assert set(our_cache) == {"layer"}
