"""DecodeStep equals ordinary decoding, token for token and bit for bit; models without a step or a graph."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import openmythos
from openmythos import dispatch
from openmythos.backends import library
from openmythos.cache import KVCache
from openmythos.engine import DecodeStep, why_no_graph, why_no_step
from tests.models import small_model, tokens

# The package exports the function `generate`, which hides the module of the same name.
generation, stepping = (importlib.import_module(f"openmythos.engine.{name}") for name in ("generate", "step"))

LOOPS = 3


def prefilled(model: openmythos.OpenMythos, ids: torch.Tensor, loops: int = LOOPS) -> tuple[KVCache, torch.Tensor]:
    """A cache of the prompt, and the logits of its last token."""
    cache = KVCache(model.cfg.max_seq_len)
    with torch.no_grad():
        return cache, model(ids, n_loops=loops, kv_cache=cache, last_token_only=True)


def continued(
    model: openmythos.OpenMythos, ids: torch.Tensor, count: int, by_step: bool, loops: int = LOOPS
) -> tuple[torch.Tensor, torch.Tensor, KVCache]:
    """Greedy tokens (B, count), the logits that they were chosen by, and the cache."""
    cache, logits = prefilled(model, ids, loops)
    step = DecodeStep(model, cache, loops, tokens=ids.shape[1] + count) if by_step else None
    chosen, seen = [], [logits.clone()]
    for index in range(count):
        chosen.append(logits[:, -1].argmax(-1, keepdim=True))
        position = ids.shape[1] + index
        with torch.no_grad():
            if step is not None:
                logits = step(chosen[-1])
            else:
                logits = model(chosen[-1], n_loops=loops, kv_cache=cache, start_pos=position)
        seen.append(logits.clone())
    return torch.cat(chosen, 1), torch.cat(seen, 1), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_step_equals_ordinary_decoding(dtype: torch.dtype, batch: int) -> None:
    model, ids = small_model(max_seq_len=100).to(dtype), tokens(batch, 5)
    want, want_logits, want_cache = continued(model, ids, 70, by_step=False)
    found, logits, cache = continued(model, ids, 70, by_step=True)
    assert torch.equal(found, want)
    assert list(cache) == list(want_cache)
    if dtype == torch.float16 or library.missing() is not None:
        return  # the reference multiplies by the whole capacity, and a longer product sums in another order
    assert torch.equal(logits, want_logits)
    for key in want_cache:
        assert torch.equal(cache.rows(key), want_cache.rows(key)), key


@pytest.mark.parametrize("loops", [1, 4, 6])
def test_rows_that_have_halted_weigh_nothing(loops: int) -> None:
    """All loops run; the positions of the small model halt at different loops."""
    model, ids = small_model(), tokens(3, 5)
    found, _, _ = continued(model, ids, 9, by_step=True, loops=loops)
    want, _, _ = continued(model, ids, 9, by_step=False, loops=loops)
    assert torch.equal(found, want)


def test_addresses_stay() -> None:
    model, ids = small_model(), tokens(2, 5)
    cache, _ = prefilled(model, ids)
    step = DecodeStep(model, cache, LOOPS, tokens=20)
    kept = [step(tokens(2, 1)), step.token, step.rows.position, step.rows.seq_lens, cache["prelude_0"]["c_kv"]]
    before = [part.data_ptr() for part in kept]
    for _ in range(8):
        kept[0] = step(tokens(2, 1))
    kept[-1] = cache["prelude_0"]["c_kv"]
    assert [part.data_ptr() for part in kept] == before
    assert step.rows.position.tolist() == [14, 14]
    assert step.rows.seq_lens.tolist() == [15, 15]
    assert cache.length("coda_0") == 14


def test_ordinary_calls_go_on_after_steps() -> None:
    model, ids = small_model(), tokens(2, 5)
    want = continued(model, ids, 9, by_step=False)[1]
    cache, logits = prefilled(model, ids)
    step = DecodeStep(model, cache, LOOPS, tokens=10)
    for index in range(9):
        token = logits[:, -1].argmax(-1, keepdim=True)
        with torch.no_grad():
            logits = step(token) if index < 5 else model(token, n_loops=LOOPS, kv_cache=cache, start_pos=5 + index)
    assert torch.equal(logits[:, -1].argmax(-1), want[:, -1].argmax(-1))


class Values(TorchDispatchMode):
    """Counts ops that read the value of a tensor, for which the host would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.asked.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_and_a_cache_row_is_one_call() -> None:
    model, ids = small_model(), tokens(1, 5)
    cache, _ = prefilled(model, ids)
    step = DecodeStep(model, cache, LOOPS, tokens=20)
    step(tokens(1, 1))
    token, values = tokens(1, 1), Values()
    with dispatch.record() as served, values:
        step(token)
    assert values.asked == []
    appended = sum(count for (op, _), count in served.items() if op == "rope_append_")
    assert appended == len(model.cache_keys(LOOPS))
    with values:
        bool(token.sum() > 0)
    assert values.asked, "the test sees what it looks for"


def test_refusals() -> None:
    model, ids = small_model(), tokens(2, 5)
    cache, _ = prefilled(model, ids)
    with pytest.raises(ValueError, match="max_seq_len=40"):
        DecodeStep(model, cache, LOOPS, tokens=41)
    with pytest.raises(ValueError, match=r"kv_cache.*fill"):
        DecodeStep(model, KVCache(), LOOPS, tokens=20)
    with pytest.raises(ValueError, match="n_loops"):
        DecodeStep(model, cache, 0, tokens=20)
    with pytest.raises(ValueError, match=r"kv_cache.*\[0, 5\]"):
        DecodeStep(model, cache, LOOPS + 1, tokens=20)
    step = DecodeStep(model, cache, LOOPS, tokens=6)
    step(tokens(2, 1))
    with pytest.raises(ValueError, match="tokens=6"):
        step(tokens(2, 1))
    other = DecodeStep(model, cache, LOOPS, tokens=20)
    with torch.no_grad():
        model(tokens(2, 1), n_loops=LOOPS, kv_cache=cache, start_pos=6)
    with pytest.raises(ValueError, match="behind this step"):
        other(tokens(2, 1))


def test_a_model_modified_behind_the_step_is_refused() -> None:
    model, ids = small_model(), tokens(2, 5)
    cache, _ = prefilled(model, ids)
    step = DecodeStep(model, cache, LOOPS, tokens=20)
    before = step(tokens(2, 1)).clone()
    handle = model.recurrent.block.attn.wo.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="modified behind this step"):
        step(tokens(2, 1))
    handle.remove()
    assert cache.length("coda_0") == 6, "the failed step counts nothing"
    cache.truncate(5)
    step = DecodeStep(model, cache, LOOPS, tokens=20)
    assert torch.equal(step(tokens(2, 1)), before)


def test_a_cache_with_entries_of_another_implementation_is_refused() -> None:
    model, ids = small_model(), tokens(2, 5)
    cache, _ = prefilled(model, ids)
    cache["prelude_0"] = {name: part.clone() for name, part in cache["prelude_0"].items()}
    with pytest.raises(ValueError, match=r"kv_cache.*fill it by one model"):
        DecodeStep(model, cache, LOOPS, tokens=20)
    with torch.no_grad():
        model(tokens(2, 1), n_loops=LOOPS, kv_cache=cache, start_pos=5)
    assert DecodeStep(model, cache, LOOPS, tokens=20)(tokens(2, 1)).shape == (2, 1, 101)


def test_a_buffer_allocated_anew_is_noticed() -> None:
    model, ids = small_model(max_seq_len=200), tokens(2, 5)
    cache, _ = prefilled(model, ids)
    step = DecodeStep(model, cache, LOOPS, tokens=20)
    with torch.no_grad():
        model(tokens(2, 90), n_loops=LOOPS, kv_cache=cache, start_pos=5)
    cache.truncate(5)
    with pytest.raises(ValueError, match="behind this step"):
        step(tokens(2, 1))


def test_backends_are_chosen_once_for_all_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, counts, original = small_model(), tokens(2, 5), [], dispatch.select_for_all

    def select_for_all(*args: object) -> object:
        counts[-1] += 1
        return original(*args)

    monkeypatch.setattr(dispatch, "select_for_all", select_for_all)
    with torch.no_grad():
        for loops in (2, 3, 9):
            counts.append(0)
            model(ids, n_loops=loops, kv_cache={})
    assert counts[0] == counts[1] == counts[2] > 0


def test_reasons_against_a_step() -> None:
    assert why_no_step(small_model()) is None
    assert "attn_type='gqa'" in why_no_step(small_model("gqa"))
    model = small_model()
    handle = model.prelude[0].attn.register_forward_hook(lambda *_: None)
    assert "prelude.0.attn" in why_no_step(model)
    handle.remove()
    assert why_no_step(model) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in why_no_step(model)
    model = small_model(dropout=0.5).train()
    assert why_no_step(model) is None, "dropout is off in a step"


def test_a_graph_on_the_cpu_is_a_sentence_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    model, ids = small_model(), tokens(2, 5)
    assert why_no_graph(model) == "the model is on cpu, and graphs exist on CUDA and ROCm devices"
    want = model.generate(ids, 6, LOOPS, temperature=0)
    with caplog.at_level(logging.INFO, logger="openmythos"):
        assert torch.equal(model.generate(ids, 6, LOOPS, temperature=0, graph=None), want)
    assert "without a graph: the model is on cpu" in caplog.text
    for method in ("generate", "stream"):
        with pytest.raises(ValueError, match=r"graph=True: the model is on cpu.*graph=None"):
            getattr(model, method)(ids, 6, LOOPS, graph=True)
    cache, _ = prefilled(model, ids)
    with pytest.raises(ValueError, match="graph=True: the model is on cpu"):
        DecodeStep(model, cache, LOOPS, tokens=20, graph=True)


def test_generation_by_steps_draws_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """generate as with a graph, but the step runs without one."""
    model, ids, made = small_model(), tokens(3, 5), []

    def eager(*args: object, graph: bool, **options: object) -> DecodeStep:
        made.append(DecodeStep(*args, **options))
        return made[-1]

    monkeypatch.setattr(generation, "why_no_graph", lambda model: None)
    monkeypatch.setattr(generation, "DecodeStep", eager)
    eos = int(model.generate(ids, 12, LOOPS, temperature=0)[0, 8])
    for options in ({"temperature": 0}, {"top_k": 7}, {"temperature": 0, "eos_token_id": eos}):
        drawn = []
        for graph in (False, True):
            generator = torch.Generator().manual_seed(3)
            drawn.append(model.generate(ids, 12, LOOPS, generator=generator, graph=graph, **options))
        assert torch.equal(*drawn)
    assert len(made) == 3
    assert model.generate(ids, 1, LOOPS, graph=True).shape == (3, 6)
    assert len(made) == 3, "the prompt alone needs no step"


class RecordedGraph:
    """Replaces torch.cuda.CUDAGraph: a capture has no effect, and a replay runs the step."""

    captured: ClassVar[list[RecordedGraph]] = []

    def __init__(self) -> None:
        self.step: DecodeStep | None = None
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.step._run()


def test_the_second_call_captures_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of work on the host, with a fake graph: every token is computed once."""
    model, ids = small_model(), tokens(2, 5)
    want = continued(model, ids, 9, by_step=True)[0]

    @contextmanager
    def capture(graph: RecordedGraph) -> Iterator[None]:
        RecordedGraph.captured.append(graph)
        graph.step = step
        state = (step.rows.position, step.rows.seq_lens, step.logits, step.rows.buffer)
        before = [part.clone() for part in state]
        yield
        for part, old in zip(state, before, strict=True):
            part.copy_(old)

    monkeypatch.setattr(stepping, "why_no_graph", lambda model: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(RecordedGraph, "captured", [])
    cache, logits = prefilled(model, ids)
    step = DecodeStep(model, cache, LOOPS, tokens=14, graph=True)
    chosen = []
    for index in range(9):
        chosen.append(logits[:, -1].argmax(-1, keepdim=True))
        logits = step(chosen[-1])
        assert len(RecordedGraph.captured) == min(index, 1)
        assert cache.length("coda_0") == 6 + index
        assert step.rows.position.tolist() == [6 + index] * 2
    assert torch.equal(torch.cat(chosen, 1), want)
    assert RecordedGraph.captured[0].replays == 8


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replays_equal_the_eager_step(dtype: torch.dtype) -> None:
    model, ids = small_model(max_seq_len=100).to(dtype).cuda(), tokens(2, 5).cuda()
    reason = why_no_graph(model)
    if reason is not None:
        pytest.skip(reason)
    found = []
    for graph in (False, True):
        cache, logits = prefilled(model, ids)
        step = DecodeStep(model, cache, LOOPS, tokens=60, graph=graph)
        seen = []
        for index in range(50):
            torch.cuda.set_sync_debug_mode("error" if graph and index > 1 else "default")
            try:
                logits = step(logits[:, -1].argmax(-1, keepdim=True)).clone()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            seen.append(logits)
        found.append(torch.cat(seen, 1))
    assert torch.equal(*found)
