"""The ops: one file each with schema, fake, autograd and the public function."""

from __future__ import annotations

from openmythos.ops.linear import linear, swiglu
from openmythos.ops.loop_step import loop_step, loop_step_
from openmythos.ops.mla_attention import mla_attention
from openmythos.ops.moe import moe, moe_experts, moe_route
from openmythos.ops.rms_norm import rms_norm, rms_norm_add
from openmythos.ops.rope import rope, rope_append_

__all__ = [
    "linear",
    "loop_step",
    "loop_step_",
    "mla_attention",
    "moe",
    "moe_experts",
    "moe_route",
    "rms_norm",
    "rms_norm_add",
    "rope",
    "rope_append_",
    "swiglu",
]
