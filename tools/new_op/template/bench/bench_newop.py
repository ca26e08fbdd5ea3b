"""newop against a copy of as many bytes and the compiled reference."""

from __future__ import annotations

import pytest
import torch

from bench.baselines.compiled import compiled
from bench.case import Case
from bench.ceilings import streaming_copy
from bench.shapes import name, sets_beyond_cache
from openmythos.ops.newop import cost, newop, sample
from openmythos.ops.newop.reference import newop as reference


@pytest.mark.parametrize("rows", [1, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@torch.no_grad()
def bench_newop(rows, dtype, compare_interleaved, smoke, device):
    """Rows of mythos_1b, read once and written once."""
    shape = (min(rows, 7), 64) if smoke else (rows, 2048)
    counted = cost.newop(sample.newop(*shape, dtype, "meta"))
    inputs = [(torch.randn(shape, device=device).to(dtype),) for _ in range(sets_beyond_cache(counted.bytes))]
    spare = torch.empty_like(inputs[0][0])
    compare_interleaved(
        Case(
            ours=newop,
            inputs=inputs,
            expected=reference(*inputs[0]),
            cost=counted,
            baselines={"compiled reference": compiled(reference, device, smoke)},
            stream=lambda index: streaming_copy([(inputs[index][0], spare)]),
        )
    )
