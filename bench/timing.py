"""Interleaved timing: contenders run one after another in every round, so that ratios survive a noisy machine."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

# A sample shorter than this is repeated within one reading of the clock.
SAMPLE_SECONDS = 3e-3
# Where the system does not tell.
ASSUMED_CACHE = 64 * 2**20
# A case gets as many rounds as fit into so much time, within these limits. What is quoted gets more:
# the median of 15 rounds moves by 5% to 10% on a shared machine.
CASE_SECONDS, QUOTED_SECONDS = 3.0, 14.0
FEWEST_ROUNDS, MOST_ROUNDS, QUOTED_ROUNDS = 3, 31, 500
# of a round's time: a round that lost more to other guests of the host is no measurement
STOLEN = 0.02
# A call that takes longer is not warmed up twice, and one that takes this much longer is timed once.
PATIENCE_SECONDS, ONCE_SECONDS = 0.5, 5.0


def synchronise() -> None:
    """Wait for the accelerator, where there is one, so that a clock reading covers its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one synchronised call."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def device_seconds(function: Callable[[], object]) -> float:
    """Time on the device between two events around one call, without the host's way there."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def stolen_seconds() -> float:
    """Processor seconds since the start that the host of a virtual machine gave to others; 0 where nobody counts."""
    try:
        ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[8]
    except (OSError, IndexError):
        return 0.0
    return int(ticks) / os.sysconf("SC_CLK_TCK")


class Spread(NamedTuple):
    """Median and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of a few values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


class Contender:
    """A function over rotating sets of inputs: one sample is `repeats` calls, each on the next set.

    On a GPU the repeats are captured into one graph where the function allows it, so that short kernels are timed
    without the host's gaps between them.
    """

    def __init__(
        self, function: Callable[..., object], inputs: Sequence[tuple[Any, ...]], least: float = SAMPLE_SECONDS
    ) -> None:
        self._function = function
        self._sets = itertools.cycle(inputs)
        once = seconds(self.call)
        if once < PATIENCE_SECONDS:
            once = min(once, seconds(self.call))
        self.repeats = max(1, math.ceil(least / once))
        self.sample_seconds = self.repeats * once
        # so slow that its only timing is the one just made, right before the others' rounds
        self.only = once if once > ONCE_SECONDS else None
        self._graph = self._capture() if torch.cuda.is_available() else None
        self.how = "graph" if self._graph else "events" if torch.cuda.is_available() else "wall"

    def call(self) -> object:
        """One call on the next set of inputs."""
        return self._function(*next(self._sets))

    def _sample(self) -> None:
        for _ in range(self.repeats):
            self.call()

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._sample()
        except RuntimeError:
            # it synchronises with the host or allocates outside the pool: only an eager call can be timed
            return None
        return graph

    def wall(self) -> float:
        """Seconds of wall time a call."""
        return seconds(self._sample) / self.repeats

    def device(self) -> float | None:
        """Seconds on the device a call, by graph or by events; None on the CPU."""
        if not torch.cuda.is_available():
            return None
        return device_seconds(self._graph.replay if self._graph else self._sample) / self.repeats


class Rounds:
    """Times of several contenders, taken in turn; a ratio is the median of the rounds' own ratios.

    The order within a round rotates. At most `most` rounds, as many as fit into `limit` seconds, FEWEST_ROUNDS at
    least. Rounds in which the host took the processors away are left out, where as many remain. Who takes more than
    ONCE_SECONDS, and is not the first, was timed once before them. `device_times` are empty on the CPU.
    """

    def __init__(self, contenders: dict[str, Contender], most: int = MOST_ROUNDS, limit: float = CASE_SECONDS) -> None:
        first = next(iter(contenders))
        raced = {name: one for name, one in contenders.items() if one.only is None or name == first}
        self.times: dict[str, list[float]] = {
            name: [] if name in raced else [contender.only] for name, contender in contenders.items()
        }
        self.device_times: dict[str, list[float]] = {name: [] for name in contenders}
        names, disturbed = list(raced), []
        start = time.perf_counter()
        for turn in range(most):
            if turn >= FEWEST_ROUNDS and time.perf_counter() - start > limit:
                break
            shift = turn % len(names)
            begun, stolen = time.perf_counter(), stolen_seconds()
            for name in (*names[shift:], *names[:shift]):
                self.times[name].append(contenders[name].wall())
                device = contenders[name].device()
                if device is not None:
                    self.device_times[name].append(device)
            disturbed.append(stolen_seconds() - stolen > STOLEN * (time.perf_counter() - begun))
        if disturbed.count(False) >= FEWEST_ROUNDS:
            for times in (self.times, self.device_times):
                for name in names:
                    times[name] = [one for one, bad in zip(times[name], disturbed, strict=False) if not bad]

    def best_times(self, name: str) -> list[float]:
        """Device times where there are some, else wall times."""
        return self.device_times[name] or self.times[name]

    def median(self, name: str) -> float:
        """Median seconds of one contender."""
        return statistics.median(self.best_times(name))

    def speedup(self, name: str, over: str) -> Spread:
        """How many times faster `name` is than `over`: spread of the ratios of the rounds that both were in."""
        mine, theirs = self.best_times(name), self.best_times(over)
        # wall time against wall time where only one of both has device times
        if bool(self.device_times[name]) != bool(self.device_times[over]):
            mine, theirs = self.times[name], self.times[over]
        pairs = zip(theirs, mine, strict=False)
        return spread([slow / fast for slow, fast in pairs])


def last_cache_bytes() -> int:
    """Size of the last cache level that rotating inputs have to be larger than."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).L2_cache_size
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return int(caches[-1].read_text().strip().removesuffix("K")) * 1024 if caches else ASSUMED_CACHE


def sets_beyond_cache(nbytes: int, most: int = 64) -> int:
    """How many sets of inputs of this size to rotate, so that none is still in the last cache when its turn comes."""
    return max(2, min(most, math.ceil(2 * last_cache_bytes() / max(nbytes, 1))))
