"""Halting: each position halts at upstream's loop with upstream's weights, and the early exit changes no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from openmythos.nn.loop_state import LoopState
from tests.models import tokens
from tests.tolerances import HALTING_MARGIN, assert_within
from tests.upstream.oracle import pair


def halting(probabilities: list[torch.Tensor], threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights (loops, B, T), halting step (B, T), nearness of the sums to the threshold) of a trace of p."""
    total = torch.zeros_like(probabilities[0])
    weights, sums = [], []
    for p in probabilities:
        running = total < threshold
        weights.append(torch.where(total + p >= threshold, (1 - total).clamp(min=0), p) * running)
        total = total + p * running
        sums.append(total)
    sums = torch.stack(sums)
    return torch.stack(weights), (sums < threshold).sum(0), (sums - threshold).abs().amin(0)


@contextmanager
def traced_act(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Probabilities of each loop, (B, T), as the module `act` returns them."""
    trace: list[torch.Tensor] = []
    hook = model.recurrent.act.register_forward_hook(lambda module, args, output: trace.append(output.detach()))
    try:
        yield trace
    finally:
        hook.remove()


@contextmanager
def traced_sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """Cumulative probabilities (N) after each fused step."""
    trace: list[torch.Tensor] = []

    def traced(original: Callable) -> Callable:
        def step(self: LoopState, *args: object) -> torch.Tensor | None:
            following = original(self, *args)
            trace.append(self.cum_p.clone())
            return following

        return step

    with monkeypatch.context() as patch:
        for name in ("advance", "finish"):
            patch.setattr(LoopState, name, traced(getattr(LoopState, name)))
        yield trace


@pytest.mark.parametrize("attn_type", ["mla", "gqa"])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_halting_steps_and_weights(
    attn_type: str, threshold: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair(attn_type, act_threshold=threshold)
    if dtype == torch.float64:
        theirs, ours = theirs.double(), ours.double()
    ids, n_loops = tokens(3, 13), 12
    with torch.no_grad(), traced_act(theirs) as probabilities, traced_sums(monkeypatch) as sums:
        want = theirs(ids, n_loops=n_loops)
        found = ours(ids, n_loops=n_loops)
    weights, steps, margin = halting(probabilities, threshold)
    assert len(sums) == len(probabilities), "both leave the loop after the same step"
    total = torch.stack(sums).view(len(sums), *ids.shape)
    before = torch.cat((torch.zeros_like(total[:1]), total[:-1]))
    mine = torch.where(total >= threshold, (1 - before).clamp(min=0), total - before) * (before < threshold)
    clear = margin > HALTING_MARGIN
    assert clear.all(), "the seed puts no position on the edge"
    assert torch.equal((total < threshold).sum(0), steps)
    assert_within("weights", mine, weights, 1e-5)
    assert_within("logits", found, want, 1e-5)
    if threshold < 1:
        assert len(steps.unique()) > 1, "positions halt at different loops"


@pytest.mark.parametrize("attn_type", ["mla", "gqa"])
def test_trace_through_a_hooked_act(attn_type: str) -> None:
    theirs, ours = pair(attn_type)
    ids = tokens(2, 9)
    with torch.no_grad(), traced_act(theirs) as want, traced_act(ours) as found:
        theirs(ids, n_loops=9)
        ours(ids, n_loops=9)
    assert len(found) == len(want)
    assert_within("p", torch.stack(found), torch.stack(want), 1e-5)


@pytest.mark.parametrize("attn_type", ["mla", "gqa"])
def test_early_exit_is_exact_and_happens_only_without_a_cache(attn_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(attn_type, act_threshold=0.4)
    ids = tokens(1, 5)
    with torch.no_grad():
        for model in (theirs, ours):
            model.recurrent.act.halt.weight.mul_(0.2)
        with traced_sums(monkeypatch) as early:
            without = ours(ids, n_loops=24)
        with traced_sums(monkeypatch) as full:
            cached = ours(ids, n_loops=24, kv_cache={})
        want = theirs(ids, n_loops=24)
    assert len(early) < 24
    assert len(full) == 24
    assert_within("logits without a cache", without, want, 1e-5)
    assert_within("logits with a cache", cached, want, 1e-5)


def test_threshold_above_one_never_halts(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair("mla", act_threshold=1.0001)
    with torch.no_grad():
        theirs.recurrent.act.halt.bias.fill_(-9.0)
        ours.recurrent.act.halt.bias.fill_(-9.0)
        with traced_sums(monkeypatch) as sums:
            found = ours(tokens(1, 6), n_loops=20)
        assert len(sums) == 20
        assert_within("logits", found, theirs(tokens(1, 6), n_loops=20), 1e-5)
