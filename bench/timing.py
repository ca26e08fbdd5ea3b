"""Interleaved timing: contenders run one after another in every round, so that ratios survive a noisy machine."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


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


class Stream(NamedTuple):
    """A call that only moves bytes, and how many: a ceiling."""

    call: Callable[[], object]
    nbytes: int


def streaming_read(tensors: Sequence[torch.Tensor]) -> Stream:
    """Read the very tensors that a contender streams, so that both go through the same pages and memory."""
    views = [tensor.detach().reshape(-1).view(torch.float32) for tensor in tensors]

    def read() -> None:
        for view in views:
            view.sum()

    return Stream(read, sum(view.nbytes for view in views))


def streaming_copy(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Stream:
    """Copy the first of each pair to the second: reads and writes count."""

    def copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    return Stream(copy, sum(source.nbytes + target.nbytes for source, target in pairs))


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
