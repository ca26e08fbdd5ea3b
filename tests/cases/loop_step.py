"""Inputs of loop_step."""

from __future__ import annotations

import torch

from openmythos.ops.loop_step import LoopParams
from tests.cases import randn

THRESHOLD, EPS = 0.9, 1e-6


def params(width: int, rank: int, loops: int = 4, dtype: torch.dtype = torch.float32) -> LoopParams:
    """Parameters with A inside (0, 1) and halting probabilities around one quarter."""
    return LoopParams(
        A=torch.rand(width).to(dtype),
        B=randn(width, dtype=dtype, scale=0.3),
        lora_down=randn(rank, width, dtype=dtype, scale=width**-0.5),
        lora_scale=randn(loops, rank, dtype=dtype),
        lora_b=randn(rank, width, dtype=dtype, scale=0.3),
        halt_w=randn(width, dtype=dtype, scale=width**-0.5),
        halt_b=torch.full((1,), -1.0, dtype=dtype),
        norm_w=1 + randn(width, dtype=dtype, scale=0.2),
    )


def state(rows: int, width: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """(h, e, block_out, h_out, cum_p), with rows that run, cross and have halted."""
    cum_p = torch.rand(rows) * 1.2
    return [*(randn(rows, width, dtype=dtype) for _ in range(3)), randn(rows, width), cum_p]


def depth(t: object) -> tuple[int, torch.Tensor | None]:
    """The fields t and t_rows of a call."""
    return (0, t) if isinstance(t, torch.Tensor) else (t, None)


def step_args(
    rows: int, width: int, rank: int, t: object, dtype: torch.dtype = torch.float32, last: bool = False
) -> list:
    chosen = params(width, rank)
    if last:
        chosen = chosen._replace(norm_w=None)
    return [*state(rows, width, dtype), *chosen, *depth(t), THRESHOLD, EPS, width // 8]
