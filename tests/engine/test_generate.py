"""generate(), stream() and sample(): sampling rules, end of sequence, streaming and every error."""

from __future__ import annotations

import pytest
import torch

from openmythos.cache import KVCache
from openmythos.engine import sample
from tests.models import small_model, tokens

ATTENTION = pytest.mark.parametrize("attn_type", ["mla", "gqa"])


def greedy(model: torch.nn.Module, ids: torch.Tensor, count: int, n_loops: int) -> torch.Tensor:
    """The most likely continuation without a cache."""
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat((ids, model(ids, n_loops=n_loops)[:, -1:].argmax(-1)), dim=1)
    return ids


@ATTENTION
@pytest.mark.parametrize("batch", [1, 3])
def test_temperature_zero_is_greedy_and_the_cache_changes_nothing(attn_type: str, batch: int) -> None:
    model, ids = small_model(attn_type), tokens(batch, 5)
    assert torch.equal(model.generate(ids, 9, 3, temperature=0), greedy(model, ids, 9, 3))
    assert torch.equal(model.generate(ids, 9, 3, temperature=0, top_k=0), greedy(model, ids, 9, 3))


@ATTENTION
def test_top_k_above_the_vocabulary_takes_all(attn_type: str) -> None:
    model, drawn = small_model(attn_type), []
    for top_k in (0, 101, 102, 10**9):
        torch.manual_seed(3)
        drawn.append(model.generate(tokens(2, 5), 9, 2, top_k=top_k))
    assert all(torch.equal(part, drawn[0]) for part in drawn)


def test_top_k_of_one_is_greedy() -> None:
    model, ids = small_model(), tokens(2, 5)
    assert torch.equal(model.generate(ids, 6, 2, top_k=1), greedy(model, ids, 6, 2))


def test_sample_draws_from_the_top_k_with_their_probabilities() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0, 1.0]]).expand(20000, -1)
    drawn = sample(logits, temperature=0.5, top_k=2, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(drawn.flatten(), minlength=5) / 20000
    want = torch.softmax(torch.tensor([float("-inf"), 4.0, 2.0, float("-inf"), 2.0]), -1)
    assert (found - want).abs().max() < 0.015, "ties with the k-th logit stay in"


def test_sample_leaves_the_logits_alone() -> None:
    logits = torch.randn(2, 9)
    before = logits.clone()
    sample(logits, 0.7, 3)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models_generate(dtype: torch.dtype) -> None:
    model, ids = small_model().to(dtype), tokens(2, 5)
    out = model.generate(ids, 6, 2, temperature=0.8, top_k=5)
    assert out.shape == (2, 11)
    assert torch.equal(out[:, :5], ids)


@ATTENTION
def test_end_of_sequence(attn_type: str) -> None:
    model, ids = small_model(attn_type), tokens(3, 5)
    free = model.generate(ids, 12, 2, temperature=0)
    eos = int(free[0, 7])
    out = model.generate(ids, 12, 2, temperature=0, eos_token_id=eos)
    ends = []
    for row, want in zip(out[:, 5:].tolist(), free[:, 5:].tolist(), strict=True):
        end = want.index(eos) if eos in want else len(want)
        ends.append(end)
        assert row[: end + 1] == want[: min(end + 1, len(row))]
        assert all(token == eos for token in row[end:])
    assert out.shape[1] - 5 == min(max(ends) + 1, 12), "stops when every row has ended"


def test_end_of_sequence_at_once() -> None:
    model, ids = small_model(), tokens(1, 5)
    eos = int(model.generate(ids, 1, 2, temperature=0)[0, -1])
    assert model.generate(ids, 30, 2, temperature=0, eos_token_id=eos).shape == (1, 6)


def test_a_generator_seeds_the_sampling_and_leaves_the_global_one() -> None:
    model, ids = small_model(), tokens(2, 5)
    state = torch.get_rng_state()
    one = model.generate(ids, 9, 2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.generate(ids, 9, 2, generator=torch.Generator().manual_seed(5)), one)
    assert not torch.equal(model.generate(ids, 9, 2, generator=torch.Generator().manual_seed(6)), one)


@ATTENTION
def test_streaming_gives_the_same_tokens_as_they_come(attn_type: str) -> None:
    model, ids, seen = small_model(attn_type), tokens(2, 5), []
    want = model.generate(ids, 7, 2, temperature=0, on_token=lambda token: seen.append(token.clone()))
    assert torch.equal(torch.cat(seen, 1), want[:, 5:])
    steps = model.stream(ids, 7, 2, temperature=0)
    first = next(steps)
    assert first.shape == (2, 1)
    assert torch.equal(first, want[:, 5:6])
    assert torch.equal(torch.cat(list(steps), 1), want[:, 6:])


def test_a_stream_may_be_left_and_gradients_stay_on_outside() -> None:
    model = small_model()
    steps = model.stream(tokens(1, 5), 7, 2)
    next(steps)
    assert torch.is_grad_enabled()
    steps.close()
    assert torch.is_grad_enabled()


def test_max_new_tokens_zero_returns_the_prompt() -> None:
    model, ids = small_model(), tokens(2, 5)
    assert torch.equal(model.generate(ids, 0), ids)
    assert list(model.stream(ids, 0)) == []


def test_the_whole_context_can_be_used() -> None:
    """The last sampled token is not fed back, so the prompt and all but one new token have to fit."""
    model = small_model()
    assert model.generate(tokens(1, 30), 11, 1, temperature=0).shape == (1, 41)
    assert model.generate(tokens(1, 40), 1, 1, temperature=0).shape == (1, 41)


def test_dropout_is_off_whatever_the_mode_and_the_modes_come_back() -> None:
    model, ids = small_model(dropout=0.5), tokens(2, 5)
    want = model.generate(ids, 6, 2, temperature=0)
    model.train()
    model.coda.eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.generate(ids, 6, 2, temperature=0), want)
    assert [module.training for module in model.modules()] == modes


def test_int32_prompts() -> None:
    model, ids = small_model(), tokens(2, 5)
    assert torch.equal(model.generate(ids.int(), 6, 2, temperature=0).long(), model.generate(ids, 6, 2, temperature=0))


def test_only_the_last_tokens_logits_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = small_model(), []
    original = type(model).forward

    def forward(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        shapes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(type(model), "forward", forward)
    model.generate(tokens(2, 9), 3, 2)
    assert shapes == [(2, 1, 101)] * 3


REFUSED = {
    "negative max_new_tokens": ({"max_new_tokens": -1}, "max_new_tokens=-1"),
    "too many": ({"max_new_tokens": 37}, r"max_new_tokens=37.*max_seq_len=40"),
    "temperature": ({"temperature": -0.1}, r"temperature=-0\.1"),
    "temperature not a number": ({"temperature": float("nan")}, "temperature=nan"),
    "top_k": ({"top_k": -1}, "top_k=-1"),
    "no loops": ({"n_loops": 0}, "n_loops=0"),
    "negative loops": ({"n_loops": -3}, "n_loops=-3"),
    "empty prompt": ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "input_ids"),
    "flat prompt": ({"input_ids": torch.zeros(4, dtype=torch.long)}, "input_ids"),
    "id too large": ({"input_ids": torch.tensor([[0, 101]])}, "101"),
    "id negative": ({"input_ids": torch.tensor([[0, -1]])}, "-1"),
    "long prompt": ({"input_ids": torch.zeros(1, 41, dtype=torch.long)}, "max_seq_len=40"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_refusals_name_the_argument_before_anything_runs(
    method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    changes, message = REFUSED[name]
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**{"input_ids": tokens(1, 5), "max_new_tokens": 4, **changes})


def test_empty_batch() -> None:
    """No sequences give no tokens."""
    model = small_model()
    with torch.no_grad():
        assert model(torch.zeros(0, 3, dtype=torch.long), n_loops=2).shape == (0, 3, 101)
    assert model.generate(torch.zeros(0, 3, dtype=torch.long), 4, 2).shape == (0, 7)


def test_cache_of_a_generation_holds_no_slot_twice() -> None:
    model, cache = small_model(), KVCache()
    with torch.no_grad():
        for position, width in ((0, 5), (5, 1), (6, 1)):
            model(tokens(2, width), n_loops=3, kv_cache=cache, start_pos=position)
    assert {cache.length(key) for key in cache} == {7}
    assert cache.nbytes == 5 * 2 * cache.capacity * 26 * 4
