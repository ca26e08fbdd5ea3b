"""The norm with residual addition at the width of every variant, against a copy, torch and the compiled reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.baselines.compiled import compiled
from bench.case import Case
from bench.ceilings import streaming_copy
from bench.shapes import ALL, config, sets_beyond_cache
from openmythos import ops, reference
from openmythos.ops.rms_norm import RmsNormAdd, cost

EPS = 1e-6


def _torch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return F.rms_norm(total.float(), total.shape[-1:], weight, eps).to(x.dtype), total


@pytest.mark.parametrize(("variant", "rows"), [("1b", 1), *((variant, 2048) for variant in ALL)], ids=str)
@torch.no_grad()
def bench_rms_norm_add(variant, rows, compare_interleaved, smoke, device):
    """bfloat16 rows in and out; two reads and two writes of a row."""
    dim, dtype = config(variant, smoke).dim, torch.bfloat16
    weight = torch.rand(dim, device=device) + 0.5

    def one():
        return *(torch.randn(rows, dim, device=device).to(dtype) for _ in range(2)), weight, EPS

    inputs = [one()]
    counted = cost.rms_norm_add(RmsNormAdd(*inputs[0], dtype))
    inputs += [one() for _ in range(1, sets_beyond_cache(counted.bytes))]

    def ours(x, residual, weight, eps):
        return ops.rms_norm_add(x, residual, weight, eps, dtype=dtype)

    def plain(x, residual, weight, eps):
        return reference.rms_norm_add(x, residual, weight, eps, dtype)

    spare = torch.empty_like(inputs[0][0])
    case = Case(
        ours=ours,
        inputs=inputs,
        expected=plain(*inputs[0])[0],
        cost=counted,
        baselines={
            "torch": _torch,
            "compiled reference": compiled(plain, device, smoke) if variant == "1b" else "1b only",
        },
        stream=lambda index: streaming_copy([(inputs[index][0], spare), (inputs[index][1], spare)]),
    )
    compare_interleaved(case)
