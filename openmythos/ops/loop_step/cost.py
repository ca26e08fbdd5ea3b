"""Bytes and FLOPs of loop_step and its backward."""

from __future__ import annotations

from openmythos.ops.cost import Cost
from openmythos.ops.loop_step import LoopParams, LoopStep, LoopStepBackward, LoopStepInPlace

Call = LoopStep | LoopStepInPlace | LoopStepBackward


def _weights(call: Call) -> int:
    """Bytes of the parameters that have a value per column; the others are a few bytes."""
    parameters = (getattr(call, name) for name in LoopParams._fields)
    return sum(part.nbytes for part in parameters if part is not None and part.shape[-1] == call.h.shape[1])


def loop_step(call: LoopStep | LoopStepInPlace) -> Cost:
    """Reads h, e, block_out and h_out, writes h, h_out and the next input, which has the dtype of e."""
    rank = call.lora_down.shape[0]
    moved = 2 * call.h.nbytes + 2 * call.e.nbytes + call.block_out.nbytes + 2 * call.h_out.nbytes
    return Cost(weights=_weights(call), activations=moved, flops=call.h.numel() * (4 * rank + 16))


def loop_step_backward(call: LoopStepBackward) -> Cost:
    """Reads h, e, block_out and their three gradients, writes three gradients; h' is recomputed."""
    rank = call.lora_down.shape[0]
    moved = 2 * (call.h.nbytes + call.e.nbytes + call.block_out.nbytes)
    moved += call.grad_h.nbytes + call.grad_out.nbytes + call.grad_next.nbytes
    return Cost(weights=_weights(call), activations=moved, flops=call.h.numel() * (12 * rank + 40))
