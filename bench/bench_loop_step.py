"""The loop step at mythos_1b's width, in place: useful bytes against a copy of as many."""

from __future__ import annotations

import pytest
import torch

from bench.timing import streaming_copy
from openmythos import ops, use_backend
from openmythos.ops.loop_step import LoopParams

DIM, RANK, LOOPS = 2048, 8, 16


@pytest.mark.parametrize("rows", [1, 128, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def bench_loop_step(rows, dtype, race, check):
    """Four reads and three writes of a row, each at its own dtype; h_out is float32."""
    torch.manual_seed(0)
    h, e, block_out = (torch.randn(rows, DIM, dtype=dtype) for _ in range(3))
    h_out, cum_p = torch.zeros(rows, DIM), torch.zeros(rows)
    params = LoopParams(
        torch.full((DIM,), 0.37),
        torch.full((DIM,), 0.1),
        torch.randn(RANK, DIM) * DIM**-0.5,
        torch.randn(LOOPS, RANK),
        torch.randn(RANK, DIM) * 0.02,
        torch.randn(DIM) * DIM**-0.5,
        torch.full((1,), -2.0),
        torch.ones(DIM),
    )
    step = {"threshold": 0.99, "loop_dim": DIM // 8}
    with use_backend("reference"):
        expected = ops.loop_step(h, e, block_out, h_out, cum_p, params, 3, **step)[3]
    x_next = torch.empty_like(e)
    ops.loop_step_(h.clone(), e, block_out, h_out.clone(), cum_p.clone(), params, 3, x_next=x_next, **step)
    error = check(x_next, expected)

    def ours() -> None:
        ops.loop_step_(h, e, block_out, h_out, cum_p, params, 3, x_next=x_next, **step)

    nbytes = rows * DIM * (5 * dtype.itemsize + 2 * 4)
    spare = torch.empty_like(h_out)
    ceiling = streaming_copy([(e, x_next), (block_out, x_next), (h_out, spare)])
    race(ours, {}, 31, ceiling, error=error, bytes=nbytes)
