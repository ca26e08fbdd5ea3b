"""loop_step and loop_step_, with an int or a tensor t, and their backward."""

from __future__ import annotations

import torch

from openmythos.backends.triton.rows import dtype_reason, register_row, why_not

PARAMS = 8


def _supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    if h_out.dtype != torch.float32:
        return f"the state is {h_out.dtype}: the kernels keep it in float32"
    return why_not(h, e, block_out, h_out, cum_p, *rest[:PARAMS])


def _in_place_supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    return _supports(h, e, block_out, h_out, cum_p, *rest) or why_not(h, rest[PARAMS])


def _backward_supports(grad_h, grad_out, grad_p, grad_next, h, e, block_out, cum_p, *rest) -> str | None:
    if grad_out.dtype != torch.float32:
        return f"the state is {grad_out.dtype}: the kernels keep it in float32"
    return dtype_reason(grad_h, grad_next) or why_not(h, e, block_out, cum_p, *rest[:PARAMS])


register_row("loop_step", "loop_step.loop_step", _supports)
register_row("loop_step_", "loop_step.loop_step_", _in_place_supports)
register_row("loop_step_backward", "loop_step.loop_step_backward", _backward_supports)
