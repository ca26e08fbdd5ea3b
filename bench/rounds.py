"""Interleaved timing: in every round each implementation is sampled once, in a rotating order."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from openmythos.timing import Spread, device_seconds, rotated, seconds, speedup, stolen_seconds

# Shorter calls are repeated within one clock reading.
SAMPLE_SECONDS = 3e-3
# A case gets as many rounds as fit its time budget, within these limits. Quoted cases get more: on a shared machine
# the median of 15 rounds moves by 5% to 10%.
CASE_SECONDS, QUOTED_SECONDS = 3.0, 14.0
MIN_ROUNDS, MAX_ROUNDS, QUOTED_ROUNDS = 3, 31, 500
# A round that loses a larger fraction of its time to other guests of the host is discarded.
STOLEN_SHARE = 0.02
# A call that takes longer than the first is not warmed up twice; one that takes longer than the second is timed once.
WARM_UP_SECONDS, ONCE_SECONDS = 0.5, 5.0


class Sampler:
    """Times one implementation over rotating inputs: a sample is `repeats` calls, each on the next inputs.

    On a GPU the repeats are captured into one graph where the implementation allows it, so that launch gaps between
    short kernels are not timed.
    """

    def __init__(
        self, function: Callable[..., object], inputs: Sequence[tuple[Any, ...]], min_seconds: float = SAMPLE_SECONDS
    ) -> None:
        self._function = function
        self._inputs = itertools.cycle(inputs)
        once = seconds(self.call)
        if once < WARM_UP_SECONDS:
            once = min(once, seconds(self.call))
        self.repeats = max(1, math.ceil(min_seconds / once))
        self.sample_seconds = self.repeats * once
        # the only timing of a call that is too slow for the rounds
        self.only = once if once > ONCE_SECONDS else None
        self._graph = self._capture() if torch.cuda.is_available() else None
        self.clock = "graph" if self._graph else "events" if torch.cuda.is_available() else "wall"

    def call(self) -> object:
        """One call on the next inputs."""
        return self._function(*next(self._inputs))

    def _sample(self) -> None:
        for _ in range(self.repeats):
            self.call()

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._sample()
        except RuntimeError:
            # it synchronises with the host or allocates outside the pool
            return None
        return graph

    def wall(self) -> float:
        """Wall time of a call, in seconds."""
        return seconds(self._sample) / self.repeats

    def device(self) -> float | None:
        """GPU time of a call in seconds, by graph or by events; None on the CPU."""
        if not torch.cuda.is_available():
            return None
        return device_seconds(self._graph.replay if self._graph else self._sample) / self.repeats


class Rounds:
    """Times of several implementations by name, each in the order of the rounds; device times are empty on the CPU."""

    def __init__(self, wall: dict[str, list[float]], device: dict[str, list[float]]) -> None:
        self.wall, self.device = wall, device

    def times(self, name: str) -> list[float]:
        """Device times, or wall times where there are none."""
        return self.device[name] or self.wall[name]

    def median(self, name: str) -> float:
        """Median seconds of one implementation."""
        return statistics.median(self.times(name))

    def speedup(self, name: str, over: str) -> Spread:
        """How many times as fast `name` is as `over`: the spread of the ratios of the rounds that have both."""
        if bool(self.device[name]) != bool(self.device[over]):
            return speedup(self.wall[name], self.wall[over])
        return speedup(self.times(name), self.times(over))


def compare_interleaved(
    samplers: dict[str, Sampler], max_rounds: int = MAX_ROUNDS, max_seconds: float = CASE_SECONDS
) -> Rounds:
    """Run rounds until `max_rounds` or `max_seconds` is reached, at least MIN_ROUNDS.

    Rounds with steal time are discarded where enough others remain. A call that takes more than ONCE_SECONDS keeps
    its one timing from before the rounds, unless it is the first.
    """
    first = next(iter(samplers))
    names = [name for name, sampler in samplers.items() if sampler.only is None or name == first]
    wall = {name: [] if name in names else [sampler.only] for name, sampler in samplers.items()}
    device: dict[str, list[float]] = {name: [] for name in samplers}
    disturbed = []
    start = time.perf_counter()
    for turn in range(max_rounds):
        if turn >= MIN_ROUNDS and time.perf_counter() - start > max_seconds:
            break
        begun, stolen = time.perf_counter(), stolen_seconds()
        for name in rotated(names, turn):
            wall[name].append(samplers[name].wall())
            device_time = samplers[name].device()
            if device_time is not None:
                device[name].append(device_time)
        disturbed.append(stolen_seconds() - stolen > STOLEN_SHARE * (time.perf_counter() - begun))
    if disturbed.count(False) >= MIN_ROUNDS:
        for times in (wall, device):
            for name in names:
                times[name] = [one for one, bad in zip(times[name], disturbed, strict=False) if not bad]
    return Rounds(wall, device)
