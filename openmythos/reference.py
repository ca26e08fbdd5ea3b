"""The reference of every op under one name: plain, differentiable PyTorch, any dtype up to float64, with its backward.

Statistics, softmax and accumulation are float32 for 16-bit inputs and in the input's own dtype above. The functions
are in openmythos/ops/<op>/reference.py, which import torch only.
"""

from __future__ import annotations

from openmythos.ops.attention.reference import attention
from openmythos.ops.linear.reference import linear, swiglu
from openmythos.ops.loop_step.reference import loop_embedding, loop_step, loop_step_backward
from openmythos.ops.mla_attention.reference import mla_absorbed, mla_attention_backward, mla_decompressed
from openmythos.ops.moe.reference import (
    group_by_expert,
    moe_experts,
    moe_experts_backward,
    moe_experts_hidden,
    moe_route,
    moe_route_backward,
)
from openmythos.ops.rms_norm.reference import rms_norm, rms_norm_add, rms_norm_backward
from openmythos.ops.rope.reference import places, rope, rope_append_

__all__ = [
    "attention",
    "group_by_expert",
    "linear",
    "loop_embedding",
    "loop_step",
    "loop_step_backward",
    "mla_absorbed",
    "mla_attention_backward",
    "mla_decompressed",
    "moe_experts",
    "moe_experts_backward",
    "moe_experts_hidden",
    "moe_route",
    "moe_route_backward",
    "places",
    "rms_norm",
    "rms_norm_add",
    "rms_norm_backward",
    "rope",
    "rope_append_",
    "swiglu",
]
