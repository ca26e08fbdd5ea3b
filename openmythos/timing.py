"""Timing of interleaved calls, so that ratios hold while the machine's speed varies: for demo and bench."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


def synchronize() -> None:
    """Wait for the GPU, if there is one, so that a clock reading covers its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Wall time of one synchronised call, and its result."""
    synchronize()
    start = time.perf_counter()
    result = function()
    synchronize()
    return time.perf_counter() - start, result


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one synchronised call."""
    return timed(function)[0]


def median_seconds(function: Callable[[], object], rounds: int = 5) -> float:
    """Median wall time over `rounds` calls, after one call that warms up."""
    function()
    return statistics.median(seconds(function) for _ in range(rounds))


def device_seconds(function: Callable[[], object]) -> float:
    """GPU time between two events around one call, without the host's launch overhead."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def stolen_seconds() -> float:
    """Steal time of a virtual machine since boot, summed over processors; 0 where the system does not report it."""
    try:
        ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[8]
    except (OSError, IndexError):
        return 0.0
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """The order of round `turn`: each round begins one item later than the round before it."""
    shift = turn % len(items)
    return [*items[shift:], *items[:shift]]


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of a few values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def speedup(times: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The spread of the ratios baseline / times, each of two times from one round."""
    return spread([slow / fast for slow, fast in zip(baseline, times, strict=False)])
