"""Projections without bias at the widths of mythos_1b, against a streaming read and torch's linear."""

from __future__ import annotations

import pytest
import torch

from bench.case import Case, truth
from bench.ceilings import best_linear, streaming_read, with_products
from bench.shapes import random_weights, sets_beyond_cache
from openmythos import ops, reference
from openmythos.ops.linear import Linear, cost


@pytest.mark.parametrize("out", [2048, 32000])
@pytest.mark.parametrize("rows", [1, 8, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def bench_linear(rows, out, dtype, compare_interleaved, smoke, device):
    """The weights rotate through more than the last-level cache holds, like the layers of a model."""
    width, out = (96, out // 64) if smoke else (2048, out)
    weight = {"dtype": dtype, "device": device, "scale": width**-0.5}
    sets = sets_beyond_cache(out * width * dtype.itemsize)
    x = torch.randn(rows, width, device=device).to(dtype)
    inputs = [(x, random_weights(out, width, **weight)) for _ in range(sets)]
    case = Case(
        ours=ops.linear,
        inputs=inputs,
        expected=truth(reference.linear, *inputs[0]),
        cost=cost.linear(Linear(*inputs[0])),
        baselines=with_products({"torch": reference.linear}, dtype, device),
        stream=lambda index: streaming_read([inputs[index][1]]),
        products=best_linear(rows, width, dtype, device) if rows > 8 else (),
    )
    compare_interleaved(case)
