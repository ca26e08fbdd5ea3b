"""Calls of loop_step by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from openmythos.ops.loop_step import LoopParams, LoopStep, LoopStepBackward, LoopStepInPlace, param_shapes

THRESHOLD, EPS = 0.99, 1e-6


def _fields(rows: int, dim: int, rank: int, loops: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The fields that the three calls share, by name."""
    parameters = LoopParams(*(torch.zeros(shape, device=device) for shape in param_shapes(dim, rank, loops)))
    states = {name: torch.zeros(rows, dim, dtype=dtype, device=device) for name in ("h", "e", "block_out")}
    settings = {"t": 0, "t_rows": None, "threshold": THRESHOLD, "eps": EPS, "loop_dim": dim // 8}
    return states | {"cum_p": torch.zeros(rows, device=device)} | parameters._asdict() | settings


def loop_step(rows: int, dim: int, rank: int, loops: int, dtype: torch.dtype, device: str) -> LoopStep:
    """h, e and block_out (rows, dim), LoRA matrices of `rank`."""
    fields = _fields(rows, dim, rank, loops, dtype, device)
    return LoopStep(**fields, h_out=torch.zeros(rows, dim, device=device))


def loop_step_(rows: int, dim: int, rank: int, loops: int, dtype: torch.dtype, device: str) -> LoopStepInPlace:
    """The same in place."""
    call = loop_step(rows, dim, rank, loops, dtype, device)
    return LoopStepInPlace(**call._asdict(), x_next=torch.zeros_like(call.h))


def loop_step_backward(
    rows: int, dim: int, rank: int, loops: int, dtype: torch.dtype, device: str
) -> LoopStepBackward:
    """Its backward."""
    fields = _fields(rows, dim, rank, loops, dtype, device)
    grads = {name: torch.zeros(rows, dim, dtype=dtype, device=device) for name in ("grad_h", "grad_next")}
    grad_out = torch.zeros(rows, dim, device=device)
    return LoopStepBackward(**grads, grad_out=grad_out, grad_p=torch.zeros(rows, device=device), **fields)
