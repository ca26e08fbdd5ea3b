"""Interleaved rounds: in each, every contender does the same work once, in a rotating order."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.demo.contenders import Contender, cache_bytes
from openmythos.demo.progress import Progress

PROMPT = 128
LOOPS = 16


@dataclass
class Phase:
    """What one kind of work gave: by contender's name, seconds of each timed round, logits and backends."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    backends: dict[str, Counter] = field(default_factory=dict)
    kv_bytes_per_token: dict[str, float] = field(default_factory=dict)


class Limits(NamedTuple):
    """Timed rounds: so many at least and at most; past the least none begins that would end after the deadline."""

    least: int
    most: int
    deadline: float


# Does the round's work and returns its logits.
Work = Callable[[Contender, int], torch.Tensor]


def _round(contenders: Sequence[Contender], number: int, work: Work, say: Callable[[str], None]) -> dict[str, tuple]:
    """{name: (seconds, logits, backends that served)}; round 0 is the one that warms up and is recorded."""
    shift = number % len(contenders)
    results = {}
    for contender in (*contenders[shift:], *contenders[:shift]):
        say(contender.name)
        if number == 0:
            with dispatch.record() as served:
                results[contender.name] = (0.0, work(contender, number), served)
            continue
        start = time.perf_counter()
        logits = work(contender, number)
        results[contender.name] = (time.perf_counter() - start, logits, None)
    return results


def _rounds(
    phase: Phase, contenders: Sequence[Contender], work: Work, limits: Limits, progress: Progress
) -> list[dict[str, tuple]]:
    """The warm-up and then the timed rounds."""
    progress.rounds(phase.name)
    results: list[dict[str, tuple]] = []
    longest = 0.0
    while len(results) <= limits.most and (
        len(results) <= limits.least or progress.elapsed + longest < limits.deadline
    ):
        number, start = len(results), progress.elapsed
        title = f"{phase.name}: " + (f"round {number} of up to {limits.most}" if number else "warm-up")
        results.append(_round(contenders, number, work, functools.partial(progress.step, title)))
        longest = max(longest, progress.elapsed - start)
    for contender in contenders:
        name = contender.name
        phase.seconds[name] = [result[name][0] for result in results[1:]]
        if contender.ours:
            phase.backends[name] = results[0][name][2]
    return results


@torch.no_grad()
def prefill(
    contenders: Sequence[Contender], ids: torch.Tensor, limits: Limits, progress: Progress
) -> tuple[Phase, dict[str, MutableMapping]]:
    """Time the first PROMPT tokens of ids through LOOPS loops; also each contender's cache afterwards.

    Every call fills a fresh cache: without one, upstream leaves the loop once all positions have halted.
    """
    phase, caches = Phase(f"prefill 1x{PROMPT} tokens"), {}

    def work(contender: Contender, _number: int) -> torch.Tensor:
        caches[contender.name] = contender.new_cache()
        return contender(ids[:, :PROMPT], LOOPS, caches[contender.name], 0)

    results = _rounds(phase, contenders, work, limits, progress)
    phase.logits = {contender.name: results[-1][contender.name][1] for contender in contenders}
    return phase, caches


@torch.no_grad()
def decode(
    contenders: Sequence[Contender],
    ids: torch.Tensor,
    caches: dict[str, MutableMapping],
    limits: Limits,
    progress: Progress,
) -> Phase:
    """Time one token after the other, the text's next ones for every contender, each with its own cache.

    ids hold PROMPT tokens, one for the warm-up and one for each timed round.
    """
    phase = Phase("decode 1 token")

    def work(contender: Contender, number: int) -> torch.Tensor:
        position = PROMPT + number
        return contender(ids[:, position : position + 1], LOOPS, caches[contender.name], position)

    results = _rounds(phase, contenders, work, limits, progress)
    tokens = PROMPT + len(results)
    for contender in contenders:
        name = contender.name
        phase.logits[name] = torch.cat([result[name][1] for result in results])
        phase.kv_bytes_per_token[name] = cache_bytes(caches[name]) / tokens
    return phase
