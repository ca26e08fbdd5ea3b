"""Every op in plain, differentiable PyTorch, any dtype up to float64, with its backward written out.

Statistics, softmax and accumulation are float32 for 16-bit inputs and in the input's own dtype above.
This folder imports torch only.
"""

from __future__ import annotations

from openmythos.reference.attention import attention
from openmythos.reference.linear import linear, swiglu
from openmythos.reference.loop_step import loop_embedding, loop_step, loop_step_, loop_step_backward
from openmythos.reference.mla_attention import mla_attention, mla_attention_backward
from openmythos.reference.moe import (
    group_by_expert,
    moe_experts,
    moe_experts_backward,
    moe_experts_hidden,
    moe_route,
    moe_route_backward,
)
from openmythos.reference.rms_norm import rms_norm, rms_norm_add, rms_norm_backward
from openmythos.reference.rope import places, rope, rope_append_

__all__ = [
    "attention",
    "group_by_expert",
    "linear",
    "loop_embedding",
    "loop_step",
    "loop_step_",
    "loop_step_backward",
    "mla_attention",
    "mla_attention_backward",
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
