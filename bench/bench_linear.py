"""Projections without bias at mythos_1b's widths, few rows: against a streaming read and torch's linear."""

from __future__ import annotations

import pytest
import torch

from bench.timing import READ_BYTES, streaming_read
from openmythos import ops, reference


@pytest.mark.parametrize("out", [2048, 4096, 32000])
@pytest.mark.parametrize("rows", [1, 8, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def bench_linear(rows, out, dtype, race, check, benchmark):
    """The weights rotate through more than the last cache holds, as a model's layers do."""
    width = 2048
    copies = max(1, READ_BYTES // (out * width * dtype.itemsize))
    weights = [torch.randn(out, width, dtype=dtype) for _ in range(min(copies, 32))]
    x = torch.randn(rows, width, dtype=dtype)
    error = check(ops.linear(x, weights[0]), reference.linear(x, weights[0]))

    def ours() -> None:
        for weight in weights:
            ops.linear(x, weight)

    def torch_linear() -> None:
        for weight in weights:
            reference.linear(x, weight)

    peers = {"read": streaming_read(), "torch": torch_linear}
    total = len(weights) * out * width
    result = race(ours, peers, rounds=7, error=error, bytes=total * dtype.itemsize, flops=2 * rows * total)
    benchmark.extra_info["fraction_of_read"] = result.speedup("ours", "read") * total * dtype.itemsize / READ_BYTES
