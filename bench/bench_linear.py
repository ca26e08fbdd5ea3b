"""Projections without bias at mythos_1b's widths, few rows: against a streaming read and torch's linear."""

from __future__ import annotations

import pytest
import torch

from bench.timing import streaming_read
from openmythos import ops, reference
from openmythos.memory import prefer_huge_pages


@pytest.mark.parametrize("out", [2048, 4096, 32000])
@pytest.mark.parametrize("rows", [1, 8, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def bench_linear(rows, out, dtype, race, check):
    """The weights rotate through more than the last cache holds, as a model's layers do."""
    width = 2048
    copies = max(1, 300 * 2**20 // (out * width * dtype.itemsize))
    shape = (out, width)
    weights = [prefer_huge_pages(torch.empty(shape, dtype=dtype)).normal_() for _ in range(min(copies, 32))]
    x = torch.randn(rows, width, dtype=dtype)
    error = check(ops.linear(x, weights[0]), reference.linear(x, weights[0]))

    def ours() -> None:
        for weight in weights:
            ops.linear(x, weight)

    def torch_linear() -> None:
        for weight in weights:
            reference.linear(x, weight)

    total = len(weights) * out * width
    ceiling = streaming_read(weights)
    race(ours, {"torch": torch_linear}, 7, ceiling, error=error, bytes=ceiling.nbytes, flops=2 * rows * total)
