"""Interleaved timing: contenders run one after another in every round, so that ratios survive a noisy machine."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

READ_BYTES = 300 * 2**20


def synchronise() -> None:
    """Wait for the accelerator, where there is one, so that a clock reading covers its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one synchronised call."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


class Rounds:
    """Times of several contenders, taken in turn; a ratio is the median of the rounds' own ratios."""

    def __init__(self, contenders: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> None:
        for function in contenders.values():
            for _ in range(warmup):
                function()
        self.times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, function in contenders.items():
                self.times[name].append(seconds(function))

    def median(self, name: str) -> float:
        """Median seconds of one contender."""
        return statistics.median(self.times[name])

    def speedup(self, name: str, over: str) -> float:
        """How many times faster `name` is than `over`."""
        pairs = zip(self.times[over], self.times[name], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


def streaming_read() -> Callable[[], object]:
    """A call that reads READ_BYTES once: the ceiling of everything that streams weights."""
    block = torch.ones(READ_BYTES // 4)
    return block.sum


def copy(nbytes: int) -> Callable[[], object]:
    """A call that reads and writes `nbytes` in total: the ceiling of elementwise passes."""
    source = torch.ones(nbytes // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def best_linear(
    rows: int, width: int, dtype: torch.dtype, outs: tuple[int, ...] = (4096, 8192, 16384, 24576)
) -> dict[int, tuple[int, Callable[[], object]]]:
    """{output width: (FLOPs, call)} of torch's linear at `rows`: the best is the ceiling of what multiplies."""
    x = torch.randn(rows, width, dtype=dtype)
    calls = {}
    for out in outs:
        weight = torch.randn(out, width, dtype=dtype)
        calls[out] = (2 * rows * width * out, functools.partial(torch.nn.functional.linear, x, weight))
    return calls
