"""The cache: growth, what it stores, plain dicts, foreign entries, truncation, rollback and copies."""

from __future__ import annotations

import copy

import pytest
import torch

import openmythos
from openmythos.cache import FIRST_CAPACITY, CacheEntry, KVCache, Layout
from tests.models import config, small_model, tokens
from tests.tolerances import assert_within

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])
LAYOUT = Layout(("c_kv", "k_rope"), (5, 2), (0, 3), shared=True)


def parts(batch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, count, 5), torch.randn(batch, count, 2)


def run(
    model: openmythos.OpenMythos, ids: torch.Tensor, cache: object, start: int = 0, loops: int = 3
) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, n_loops=loops, kv_cache=cache, start_pos=start)


def test_growth_doubles_up_to_the_context_and_keeps_the_rows() -> None:
    cache = KVCache(max_seq_len=300)
    written, capacities = {"a": [], "b": []}, []
    for step in range(60):
        for key in written:
            new = parts(2, 5)
            written[key].append(torch.cat(new, -1))
            rows = cache.append(key, LAYOUT, new)
            assert torch.equal(rows, torch.cat(written[key], dim=1)), step
        capacities.append(cache.capacity)
    assert sorted(set(capacities)) == [FIRST_CAPACITY, 128, 256, 300]
    with pytest.raises(ValueError, match=r"301 tokens.*max_seq_len=300"):
        cache.append("a", LAYOUT, parts(2, 1))
    assert cache.length("a") == 300


def test_a_long_prefill_gets_its_length_at_once() -> None:
    cache = KVCache(max_seq_len=4096)
    cache.append("a", LAYOUT, parts(1, 777))
    assert cache.capacity == 777
    cache.append("a", LAYOUT, parts(1, 1))
    assert cache.capacity == 1554


def test_nothing_is_allocated_for_the_whole_context() -> None:
    model = small_model(max_seq_len=4000)
    cache = KVCache()
    run(model, tokens(1, 3), cache)
    assert cache.capacity == FIRST_CAPACITY
    assert cache.nbytes == 5 * FIRST_CAPACITY * 26 * 4, "slots x capacity x width x bytes"


def test_values_a_token_and_slot_of_mythos_1b() -> None:
    variant = openmythos.mythos_1b()
    variant.dim, variant.q_lora_rank = 32, 8
    attention = openmythos.MLAttention(variant)
    cache = {}
    with torch.no_grad():
        freqs = openmythos.precompute_rope_freqs(variant.qk_rope_head_dim, 7)
        attention(torch.randn(2, 7, 32), freqs, None, cache, "layer")
    entry = cache["layer"]
    storage = entry.cache
    assert storage.nbytes == 2 * storage.capacity * 288 * 4
    upstream = sum(entry[name].numel() for name in ("c_kv", "k_rope"))
    assert upstream == 2 * 7 * 768, "what upstream's entry of the same shapes holds"


@ATTENTION
def test_one_entry_a_layer_key(attn_type: str) -> None:
    model = small_model(attn_type)
    cache: dict = {}
    run(model, tokens(2, 7), cache)
    assert set(cache) == {"prelude_0", "recurrent_loop_0", "recurrent_loop_1", "recurrent_loop_2", "coda_0"}
    assert type(cache) is dict
    assert len(cache) == 5
    for entry in cache.values():
        names = ("c_kv", "k_rope") if attn_type == "mla" else ("k", "v")
        assert tuple(entry)[:2] == names
        assert all(entry[name].numel() > 0 for name in names)
        assert all(entry[name].shape[:2] == (2, 7) for name in names)
        with pytest.raises(KeyError):
            entry["other"]


@ATTENTION
def test_a_kv_cache_object_reads_like_the_dict(attn_type: str) -> None:
    model, ids = small_model(attn_type), tokens(2, 7)
    plain, own = {}, KVCache()
    assert torch.equal(run(model, ids, plain), run(model, ids, own))
    assert list(plain) == list(own)
    assert len(own) == 5
    for key in plain:
        for name in plain[key]:
            assert torch.equal(plain[key][name], own[key][name])
    with pytest.raises(KeyError):
        own["nothing"]


@ATTENTION
@pytest.mark.parametrize("kind", [dict, KVCache])
def test_truncate_and_continue(attn_type: str, kind: type) -> None:
    model, ids = small_model(attn_type), tokens(2, 12)
    cache = kind()
    want = run(model, ids, {})
    run(model, ids[:, :9], cache)
    storage = cache if kind is KVCache else cache["prelude_0"].cache
    storage.truncate(5)
    assert cache["coda_0"].tokens == 5
    found = run(model, ids[:, 5:], cache, 5)
    assert_within("logits", found, want[:, 5:], 1e-5)
    with pytest.raises(ValueError, match="tokens=-1"):
        storage.truncate(-1)


@ATTENTION
@pytest.mark.parametrize("where", ["prelude.0", "recurrent.block.ffn", "coda.0.ffn", "head"])
@pytest.mark.parametrize("first", [True, False], ids=["empty", "filled"])
def test_an_exception_takes_back_what_the_call_wrote(attn_type: str, where: str, first: bool) -> None:
    model, ids, cache = small_model(attn_type), tokens(2, 9), {}
    if not first:
        run(model, ids[:, :4], cache)
    before = {key: {name: part.clone() for name, part in entry.items()} for key, entry in cache.items()}

    def fail(*_args: object) -> None:
        raise OSError("from the hook")

    handle = model.get_submodule(where).register_forward_hook(fail)
    start = 0 if first else 4
    with pytest.raises(OSError, match="from the hook"):
        run(model, ids[:, start:], cache, start)
    handle.remove()
    assert cache.keys() == before.keys()
    for key, entry in before.items():
        for name, part in entry.items():
            assert torch.equal(cache[key][name], part)
    found = run(model, ids[:, start:], cache, start)
    assert_within("logits", found, run(model, ids, {})[:, start:], 1e-5)


@ATTENTION
def test_a_copied_cache_goes_its_own_way(attn_type: str) -> None:
    model, ids = small_model(attn_type), tokens(2, 12)
    for cache in ({}, KVCache()):
        run(model, ids[:, :7], cache)
        twin = copy.deepcopy(cache)
        other = tokens(2, 3, seed=9)
        run(model, other, twin, 7)
        found = run(model, ids[:, 7:], cache, 7)
        assert_within("original", found, run(model, ids, {})[:, 7:], 1e-5)
        want = run(model, torch.cat((ids[:, :7], other, ids[:, :1]), 1), {})[:, -1:]
        assert_within("copy", run(model, ids[:, :1], twin, 10), want, 1e-5)


SNAPSHOTS = {
    "views": lambda part: part,
    "clones": torch.clone,
    "contiguous": lambda part: part.contiguous(),
    "detached": torch.detach,
    "rows": lambda part: part.index_select(0, torch.tensor([1, 0])).index_select(0, torch.tensor([1, 0])),
    "slices": lambda part: part[:, :7],
}


@ATTENTION
@pytest.mark.parametrize("take", SNAPSHOTS.values(), ids=SNAPSHOTS.keys())
@pytest.mark.parametrize("grown", [False, True], ids=["same_buffer", "grown_buffer"])
def test_a_snapshot_of_our_entries_is_not_normalised_again(attn_type: str, take, grown: bool) -> None:
    model, ids, cache = small_model(attn_type, max_seq_len=200), tokens(2, 90), {}
    run(model, ids[:, :7], cache)
    snapshot = {key: {name: take(part) for name, part in entry.items()} for key, entry in cache.items()}
    if grown:
        run(model, ids[:, 7:], cache, 7)
    found = run(model, ids[:, 7:12], snapshot, 7)
    assert_within("logits", found, run(model, ids[:, :12], {})[:, 7:], 1e-5)


MOVES = {
    "entries": lambda entry: entry,
    "views": lambda entry: dict(entry.items()),
    "views without the mark": lambda entry: {name: entry[name] for name in entry if name != "normalised"},
    "clones": lambda entry: {name: part.clone() for name, part in entry.items()},
}


@ATTENTION
@pytest.mark.parametrize("how", MOVES)
@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "hooked"])
@pytest.mark.parametrize("kind", [dict, KVCache])
def test_entries_may_change_places(attn_type: str, how: str, hooked: bool, kind: type) -> None:
    """Two loops swap entries, or one gets another's: rows are copied before they are overwritten."""
    if kind is dict and how == "views without the mark" and attn_type == "mla":
        pytest.skip("a dict without one of our entries looks like one that upstream filled")
    take, model, ids, cache = MOVES[how], small_model(attn_type), tokens(2, 9), kind()
    if hooked:
        model.recurrent.block.attn.register_forward_hook(lambda *_: None)
        model.coda[0].attn.register_forward_hook(lambda *_: None)
    run(model, ids[:, :7], cache)
    sources = dict(zip(cache, cache, strict=True))
    sources |= {"recurrent_loop_0": "recurrent_loop_2", "recurrent_loop_2": "recurrent_loop_0"}
    sources["coda_0"] = "recurrent_loop_1"
    separate = {key: MOVES["clones"](cache[source]) for key, source in sources.items()}
    moved = {key: take(cache[source]) for key, source in sources.items()}
    if kind is KVCache:
        cache.update(moved)
        moved = cache
    want = run(model, ids[:, 7:], separate, 7)
    assert torch.equal(run(model, ids[:, 7:], moved, 7), want)


@ATTENTION
def test_an_entry_of_another_key_alone(attn_type: str) -> None:
    model, ids, cache = small_model(attn_type), tokens(2, 9), {}
    run(model, ids[:, :7], cache, loops=1)
    separate = {key: MOVES["clones"](cache["prelude_0"]) for key in cache}
    moved = dict.fromkeys(cache, cache["prelude_0"])
    want = run(model, ids[:, 7:], separate, 7, loops=1)
    assert torch.equal(run(model, ids[:, 7:], moved, 7, loops=1), want)


@ATTENTION
def test_views_shifted_within_their_slot(attn_type: str) -> None:
    """Also without the mark, since views are recognised by their memory."""
    model, cache = small_model(attn_type), {}
    attention, x = model.prelude[0].attn, torch.randn(2, 90, 48)
    freqs = openmythos.precompute_rope_freqs(6 if attn_type == "mla" else 12, 100)
    with torch.no_grad():
        attention(x, freqs, None, cache, "layer")
        views = {name: part[:, 1:] for name, part in cache["layer"].items()}
        separate = {"layer": {name: part.clone() for name, part in views.items()}}
        views.pop("normalised", None)
        shifted = {"other": cache["layer"], "layer": views}
        want = attention(x[:, :1], freqs, None, separate, "layer")
        assert torch.equal(attention(x[:, :1], freqs, None, shifted, "layer"), want)


@ATTENTION
def test_a_layer_called_with_the_entry_of_another_key(attn_type: str) -> None:
    model, cache = small_model(attn_type), {}
    attention, x = model.prelude[0].attn, torch.randn(2, 9, 48)
    freqs = openmythos.precompute_rope_freqs(6 if attn_type == "mla" else 12, 100)
    with torch.no_grad():
        attention(x, freqs, None, cache, "a")
        attention(x[:, :4], freqs, None, cache, "b")
        separate = {"a": {name: part.clone() for name, part in cache["b"].items()}}
        cache["a"] = cache["b"]
        want = attention(x[:, :1], freqs, None, separate, "a")
        assert torch.equal(attention(x[:, :1], freqs, None, cache, "a"), want)
    assert (cache["a"].tokens, cache["b"].tokens) == (5, 4)


@ATTENTION
def test_keys_that_the_dict_lost_are_dropped_behind_it(attn_type: str) -> None:
    model, ids, cache = small_model(attn_type), tokens(2, 9), {}
    run(model, ids[:, :5], cache, loops=3)
    cache = {"recurrent_loop_2": cache["recurrent_loop_2"]}
    assert torch.equal(run(model, ids, cache, loops=2), run(model, ids, {}, loops=2))
    assert cache["coda_0"].tokens == 9


@ATTENTION
@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "hooked"])
def test_one_allocation_a_call_and_none_past_the_context(attn_type: str, hooked: bool) -> None:
    model, cache, buffers = small_model(attn_type), KVCache(), []
    model.recurrent.act.register_forward_hook(lambda *_: buffers.append(cache.core.buffer))
    if hooked:
        model.prelude[0].register_forward_hook(lambda *_: buffers.append(cache.core.buffer))
    run(model, tokens(2, 5), cache)
    assert all(buffer is buffers[0] for buffer in buffers)
    assert cache.capacity == model.cfg.max_seq_len == 40


@ATTENTION
def test_a_dropped_entry_is_written_anew(attn_type: str) -> None:
    model, ids, cache = small_model(attn_type), tokens(2, 9), {}
    run(model, ids[:, :4], cache)
    cache.clear()
    assert_within("logits", run(model, ids, cache), run(model, ids, {}), 1e-5)
    del cache["recurrent_loop_1"]
    with pytest.raises(ValueError, match=r"recurrent_loop_1.*holds 0 of 9"):
        run(model, ids[:, :1], cache, 9)


@ATTENTION
def test_fewer_loops_leave_a_hole_that_is_named_before_anything_is_written(attn_type: str) -> None:
    model, ids, cache = small_model(attn_type), tokens(2, 9), {}
    run(model, ids[:, :4], cache, loops=3)
    run(model, ids[:, 4:5], cache, 4, loops=2)
    lengths = {key: entry.tokens for key, entry in cache.items()}
    assert lengths["recurrent_loop_2"] == 4
    with pytest.raises(ValueError, match=r"n_loops=3.*recurrent_loop_2"):
        run(model, ids[:, 5:6], cache, 5, loops=3)
    assert {key: entry.tokens for key, entry in cache.items()} == lengths
    run(model, ids[:, 5:6], cache, 5, loops=2)
    with pytest.raises(ValueError, match="n_loops=9"):
        run(model, ids[:, 6:7], cache, 6, loops=9)


@ATTENTION
def test_wrong_start_pos_batch_and_model_are_errors(attn_type: str) -> None:
    model, ids, cache = small_model(attn_type), tokens(2, 9), {}
    run(model, ids[:, :4], cache)
    for start in (0, 3, 5):
        with pytest.raises(ValueError, match=f"start_pos={start}.*4 tokens"):
            run(model, ids[:, 4:5], cache, start)
    with pytest.raises(ValueError, match="batch of 2"):
        run(model, ids[:1, 4:5], cache, 4)
    other = small_model("gqa" if attn_type == "mla" else "mla")
    with pytest.raises((ValueError, KeyError), match=r"kv_cache: holds|'k'|'c_kv'"):
        run(other, ids[:, 4:5], cache, 4)
    assert all(entry.tokens == 4 for entry in cache.values())


@ATTENTION
def test_past_max_seq_len_is_an_error_before_anything_is_written(attn_type: str) -> None:
    model, cache = small_model(attn_type), {}
    run(model, tokens(1, 39), cache)
    for count in (2, 5):
        with pytest.raises(ValueError, match="max_seq_len=40"):
            run(model, tokens(1, count), cache, 39)
    assert {entry.tokens for entry in cache.values()} == {39}
    run(model, tokens(1, 1), cache, 39)
    with pytest.raises(ValueError, match="max_seq_len=40"):
        run(model, tokens(1, 1), cache, 40)
    assert {entry.tokens for entry in cache.values()} == {40}


@ATTENTION
def test_gradients_reach_the_new_tokens_and_the_past_is_constant(attn_type: str) -> None:
    model, ids, cache = small_model(attn_type), tokens(1, 7), {}
    run(model, ids[:, :5], cache)
    before = {key: {name: part.clone() for name, part in entry.items()} for key, entry in cache.items()}
    model(ids[:, 5:], n_loops=3, kv_cache=cache, start_pos=5).sum().backward()
    assert model.recurrent.block.attn.wo.weight.grad.abs().sum() > 0
    for key, entry in before.items():
        for name, part in entry.items():
            assert not cache[key][name].requires_grad
            assert torch.equal(cache[key][name][:, :5], part)


@ATTENTION
def test_16_bit_models_cache_16_bits(attn_type: str) -> None:
    model, cache = small_model(attn_type).to(torch.bfloat16), {}
    run(model, tokens(1, 5), cache)
    entry = cache["coda_0"]
    assert isinstance(entry, CacheEntry)
    assert {part.dtype for part in entry.values()} == {torch.bfloat16}
    width = config(attn_type)
    values = (
        width.kv_lora_rank + width.qk_rope_head_dim if attn_type == "mla" else 2 * width.n_kv_heads * width.head_dim
    )
    assert entry.cache.nbytes == 5 * entry.cache.capacity * values * 2
