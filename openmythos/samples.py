"""One small call of every op, for reports on the dispatch table."""

from __future__ import annotations

from typing import Any

import torch

from openmythos.ops.linear import sample as linear
from openmythos.ops.loop_step import sample as loop_step
from openmythos.ops.mla_attention import sample as mla
from openmythos.ops.moe import sample as moe
from openmythos.ops.rms_norm import sample as rms_norm
from openmythos.ops.rope import sample as rope

DIM, HIDDEN, RANK, LOOPS = 64, 32, 4, 2
HEADS = mla.Heads(heads=2, latent=32, rope=8, nope=16, value=16)
EXPERTS = moe.Sizes(DIM, HIDDEN, experts=8, k=2, shared=1)


def samples(dtype: torch.dtype, device: str, tokens: int, past: int) -> dict[str, Any]:
    """{op: its typed call} for `tokens` new tokens after `past` cached ones, with activations of `dtype`."""
    kind = (dtype, device)
    attention = (1, tokens, past + tokens, HEADS, *kind)
    step = (tokens, DIM, RANK, LOOPS, *kind)
    return {
        "linear": linear.linear(tokens, DIM, HIDDEN, *kind),
        "loop_step": loop_step.loop_step(*step),
        "loop_step_": loop_step.loop_step_(*step),
        "loop_step_backward": loop_step.loop_step_backward(*step),
        "mla_absorbed": mla.mla_attention(*attention),
        "mla_attention_backward": mla.mla_attention_backward(*attention),
        "mla_decompressed": mla.mla_attention(*attention),
        "moe_experts": moe.moe_experts(tokens, EXPERTS, *kind),
        "moe_experts_backward": moe.moe_experts_backward(tokens, EXPERTS, *kind),
        "moe_experts_hidden": moe.moe_experts(tokens, EXPERTS._replace(shared=0), *kind),
        "moe_route": moe.moe_route(tokens, EXPERTS, *kind),
        "moe_route_backward": moe.moe_route_backward(tokens, EXPERTS, *kind),
        "rms_norm": rms_norm.rms_norm(tokens, DIM, *kind),
        "rms_norm_add": rms_norm.rms_norm_add(tokens, DIM, *kind),
        "rms_norm_backward": rms_norm.rms_norm_backward(tokens, DIM, *kind),
        "rope": rope.rope(tokens, HEADS.heads, HEADS.rope, *kind),
        "rope_append_": rope.rope_append_(tokens, HEADS.latent, HEADS.rope, *kind),
        "swiglu": linear.swiglu(tokens, DIM, HIDDEN, *kind),
    }
