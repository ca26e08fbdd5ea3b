"""One small call of every op: what `openmythos doctor` asks the dispatch table about."""

from __future__ import annotations

from typing import Any

import torch

from openmythos.ops.linear import Linear, Swiglu
from openmythos.ops.loop_step import LoopParams, LoopStep, LoopStepBackward, LoopStepInPlace, param_shapes
from openmythos.ops.mla_attention import MlaAttention, MlaAttentionBackward
from openmythos.ops.moe import (
    MoeExperts,
    MoeExpertsBackward,
    MoeRoute,
    MoeRouteBackward,
    SharedExpert,
    StackedExperts,
)
from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd, RmsNormBackward
from openmythos.ops.rope import Rope, RopeAppend

DIM, INNER, EXPERTS, TOP_K = 64, 32, 8, 2
HEADS, NOPE, ROPE, VALUE, LATENT = 2, 16, 8, 16, 32
RANK, LOOPS, LOOP_DIM = 4, 2, 8
THRESHOLD, EPS = 0.99, 1e-6


def _dense(kind: dict[str, Any], rows: int) -> dict[str, Any]:
    x, weight = torch.zeros(rows, DIM, **kind), torch.ones(DIM, **kind)
    gate, down = torch.zeros(INNER, DIM, **kind), torch.zeros(DIM, INNER, **kind)
    angles = torch.zeros(rows, ROPE // 2, 2, device=x.device)
    new_rows = torch.zeros(1, rows, LATENT + ROPE, **kind)
    return {
        "linear": Linear(x, gate),
        "swiglu": Swiglu(x, gate, gate, down),
        "rope": Rope(torch.zeros(1, rows, HEADS, ROPE, **kind), angles),
        "rope_append_": RopeAppend(new_rows, torch.ones(LATENT, **kind), angles, new_rows.clone(), None, EPS),
        "rms_norm": RmsNorm(x, weight, EPS),
        "rms_norm_add": RmsNormAdd(x, x, weight, EPS),
        "rms_norm_backward": RmsNormBackward(x, x, weight, EPS),
    }


def _moe(kind: dict[str, Any], rows: int) -> dict[str, Any]:
    device = kind["device"]
    x, logits = torch.zeros(rows, DIM, **kind), torch.zeros(rows, EXPERTS, **kind)
    ids = torch.zeros(rows, TOP_K, dtype=torch.int32, device=device)
    weights = torch.zeros(rows, TOP_K, device=device)
    routed = StackedExperts(torch.zeros(EXPERTS, 2, INNER, DIM, **kind), torch.zeros(EXPERTS, DIM, INNER, **kind))
    shared = SharedExpert(*(torch.zeros(shape, **kind) for shape in ((INNER, DIM), (INNER, DIM), (DIM, INNER))))
    return {
        "moe_route": MoeRoute(logits, torch.zeros(EXPERTS, device=device), TOP_K),
        "moe_route_backward": MoeRouteBackward(weights, ids, weights, EXPERTS, kind["dtype"]),
        "moe_experts": MoeExperts(x, ids, weights, routed._replace(shared=(shared,))),
        "moe_experts_hidden": MoeExperts(x, ids, weights, routed),
        "moe_experts_backward": MoeExpertsBackward(x, x, ids, weights, routed),
    }


def _mla(kind: dict[str, Any], rows: int, past: int) -> dict[str, Any]:
    keys = past + rows
    shapes = ((1, rows, HEADS, NOPE), (1, rows, HEADS, ROPE), (1, keys, LATENT), (1, keys, ROPE))
    tensors = [torch.zeros(shape, **kind) for shape in (*shapes, (HEADS, NOPE, LATENT), (HEADS, VALUE, LATENT))]
    out, lse = torch.zeros(1, rows, HEADS, VALUE, **kind), torch.zeros(1, HEADS, rows, device=kind["device"])
    call = MlaAttention(*tensors, scale=(NOPE + ROPE) ** -0.5, causal=True)
    return {
        "mla_absorbed": call,
        "mla_decompressed": call,
        "mla_attention_backward": MlaAttentionBackward(out, *tensors, out, lse, call.scale, causal=True),
    }


def _loop_step(kind: dict[str, Any], rows: int) -> dict[str, Any]:
    device = kind["device"]
    x, state = torch.zeros(rows, DIM, **kind), torch.zeros(rows, DIM, device=device)
    cum_p = torch.zeros(rows, device=device)
    params = LoopParams(*(torch.zeros(shape, device=device) for shape in param_shapes(DIM, RANK, LOOPS)))
    fields = params._asdict() | {"t": 0, "t_rows": None, "threshold": THRESHOLD, "eps": EPS, "loop_dim": LOOP_DIM}
    rows_of = {"h": x, "e": x, "block_out": x, "cum_p": cum_p}
    grads = {"grad_h": x, "grad_out": state, "grad_p": cum_p, "grad_next": x}
    return {
        "loop_step": LoopStep(**rows_of, h_out=state, **fields),
        "loop_step_": LoopStepInPlace(**rows_of, h_out=state, **fields, x_next=x),
        "loop_step_backward": LoopStepBackward(**grads, **rows_of, **fields),
    }


def samples(dtype: torch.dtype, device: str, tokens: int, past: int) -> dict[str, Any]:
    """{op: its typed call} for `tokens` new tokens after `past` cached ones, with activations of `dtype`."""
    kind = {"dtype": dtype, "device": device}
    return _dense(kind, tokens) | _moe(kind, tokens) | _mla(kind, tokens, past) | _loop_step(kind, tokens)
