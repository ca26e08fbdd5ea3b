"""The ops, one folder each: the typed call, its schema and autograd, the public function, the reference."""

from __future__ import annotations

from openmythos.ops.linear import linear, swiglu
from openmythos.ops.loop_step import LoopParams, loop_step, loop_step_
from openmythos.ops.mla_attention import mla_attention
from openmythos.ops.moe import ExpertWeights, SharedExpert, StackedExperts, moe, moe_experts, moe_route
from openmythos.ops.rms_norm import rms_norm, rms_norm_add
from openmythos.ops.rope import rope, rope_append_

__all__ = [
    "ExpertWeights",
    "LoopParams",
    "SharedExpert",
    "StackedExperts",
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
