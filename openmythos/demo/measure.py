"""Interleaved rounds: in each round every model does the same work once, in a rotating order."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.demo.models import ComparedModel, cache_bytes
from openmythos.demo.progress import Progress
from openmythos.timing import rotated, timed

PROMPT = 128
LOOPS = 16


@dataclass
class Phase:
    """The results of one kind of work, by model name: seconds of every timed round, logits, backends."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    backends: dict[str, Counter] = field(default_factory=dict)
    kv_bytes_per_token: dict[str, float] = field(default_factory=dict)


class Limits(NamedTuple):
    """The number of timed rounds. After `min_rounds`, no round begins that would end after `deadline`."""

    min_rounds: int
    max_rounds: int
    deadline: float


class Result(NamedTuple):
    """One model's part of a round; `backends` are those that served the warm-up."""

    seconds: float
    logits: torch.Tensor
    backends: Counter


# Runs one model's part of a round and returns its logits.
Work = Callable[[ComparedModel, int], torch.Tensor]


def _round(models: Sequence[ComparedModel], number: int, work: Work, say: Callable[[str], None]) -> dict[str, Result]:
    """{name: result}. Round 0 is the warm-up; only it records the backends, since recording slows calls down."""
    results = {}
    for model in rotated(models, number):
        say(model.name)
        call = functools.partial(work, model, number)
        if number == 0:
            with dispatch.record() as served:
                results[model.name] = Result(*timed(call), served)
        else:
            results[model.name] = Result(*timed(call), Counter())
    return results


def _rounds(
    phase: Phase, models: Sequence[ComparedModel], work: Work, limits: Limits, progress: Progress
) -> list[dict[str, Result]]:
    """The warm-up and then the timed rounds."""
    progress.rounds(phase.name)
    results: list[dict[str, Result]] = []
    longest = 0.0
    while len(results) <= limits.max_rounds and (
        len(results) <= limits.min_rounds or progress.elapsed + longest < limits.deadline
    ):
        number, start = len(results), progress.elapsed
        title = f"{phase.name}: " + (f"round {number} of up to {limits.max_rounds}" if number else "warm-up")
        results.append(_round(models, number, work, functools.partial(progress.step, title)))
        longest = max(longest, progress.elapsed - start)
    for model in models:
        name = model.name
        phase.seconds[name] = [result[name].seconds for result in results[1:]]
        if model.ours:
            phase.backends[name] = results[0][name].backends
    return results


@torch.no_grad()
def prefill(
    models: Sequence[ComparedModel], ids: torch.Tensor, limits: Limits, progress: Progress
) -> tuple[Phase, dict[str, MutableMapping]]:
    """Time the first PROMPT tokens of ids through LOOPS loops; returns the models' caches too.

    Every call fills a new cache: without a cache, upstream leaves the loop once all positions have halted.
    """
    phase, caches = Phase(f"prefill 1x{PROMPT} tokens"), {}

    def work(model: ComparedModel, _number: int) -> torch.Tensor:
        caches[model.name] = model.new_cache()
        return model(ids[:, :PROMPT], LOOPS, caches[model.name], 0)

    results = _rounds(phase, models, work, limits, progress)
    phase.logits = {model.name: results[-1][model.name].logits for model in models}
    return phase, caches


@torch.no_grad()
def decode(
    models: Sequence[ComparedModel],
    ids: torch.Tensor,
    caches: dict[str, MutableMapping],
    limits: Limits,
    progress: Progress,
) -> Phase:
    """Time one token a round: the next token of the text, the same for every model, each with its own cache.

    ids: PROMPT tokens, one for the warm-up and one for each timed round.
    """
    phase = Phase("decode 1 token")

    def work(model: ComparedModel, number: int) -> torch.Tensor:
        position = PROMPT + number
        return model(ids[:, position : position + 1], LOOPS, caches[model.name], position)

    results = _rounds(phase, models, work, limits, progress)
    tokens = PROMPT + len(results)
    for model in models:
        name = model.name
        phase.logits[name] = torch.cat([result[name].logits for result in results])
        phase.kv_bytes_per_token[name] = cache_bytes(caches[name]) / tokens
    return phase
