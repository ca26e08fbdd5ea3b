"""One small call of every op, as the dispatch table sees it: what `openmythos doctor` asks the backends about."""

from __future__ import annotations

import torch

DIM, INNER, EXPERTS, TOP_K = 64, 32, 8, 2
HEADS, NOPE, ROPE, VALUE, LATENT = 2, 16, 8, 16, 32
RANK, LOOPS, LOOP_DIM = 4, 2, 8
THRESHOLD, EPS = 0.99, 1e-6


def _dense(kind: dict, rows: int) -> dict[str, tuple]:
    x, weight = torch.zeros(rows, DIM, **kind), torch.ones(DIM, **kind)
    gate, down = torch.zeros(INNER, DIM, **kind), torch.zeros(DIM, INNER, **kind)
    angles = torch.zeros(rows, ROPE // 2, 2, device=x.device)
    new_rows = torch.zeros(1, rows, LATENT + ROPE, **kind)
    return {
        "linear": (x, gate),
        "swiglu": (x, gate, gate, down),
        "rope": (torch.zeros(1, rows, HEADS, ROPE, **kind), angles, False),
        "rope_append_": (new_rows, torch.ones(LATENT, **kind), angles, new_rows.clone(), None, EPS),
        "rms_norm": (x, weight, EPS, None),
        "rms_norm_add": (x, x, weight, EPS, None),
        "rms_norm_backward": (x, x, weight, EPS),
    }


def _moe(kind: dict, rows: int) -> dict[str, tuple]:
    device = kind["device"]
    x, logits = torch.zeros(rows, DIM, **kind), torch.zeros(rows, EXPERTS, **kind)
    ids = torch.zeros(rows, TOP_K, dtype=torch.int32, device=device)
    weights = torch.zeros(rows, TOP_K, device=device)
    experts = (torch.zeros(EXPERTS, 2, INNER, DIM, **kind), torch.zeros(EXPERTS, DIM, INNER, **kind))
    shared = [(torch.zeros(INNER, DIM, **kind), torch.zeros(INNER, DIM, **kind), torch.zeros(DIM, INNER, **kind))]
    return {
        "moe_route": (logits, torch.zeros(EXPERTS, device=device), TOP_K),
        "moe_route_backward": (weights, ids, weights, EXPERTS, kind["dtype"]),
        "moe_experts": (x, ids, weights, *experts, shared),
        "moe_experts_hidden": (x, ids, weights, *experts),
        "moe_experts_backward": (x, x, ids, weights, *experts),
    }


def _mla(kind: dict, rows: int, past: int) -> dict[str, tuple]:
    keys = past + rows
    tensors = (
        torch.zeros(1, rows, HEADS, NOPE, **kind),
        torch.zeros(1, rows, HEADS, ROPE, **kind),
        torch.zeros(1, keys, LATENT, **kind),
        torch.zeros(1, keys, ROPE, **kind),
        torch.zeros(HEADS, NOPE, LATENT, **kind),
        torch.zeros(HEADS, VALUE, LATENT, **kind),
    )
    out = torch.zeros(1, rows, HEADS, VALUE, **kind)
    lse = torch.zeros(1, HEADS, rows, device=kind["device"])
    scale = (NOPE + ROPE) ** -0.5
    return {
        "mla_absorbed": (*tensors, scale, True, None, None),
        "mla_decompressed": (*tensors, scale, True, None, None),
        "mla_attention_backward": (out, *tensors, out, lse, scale, True, None),
    }


def _loop_step(kind: dict, rows: int) -> dict[str, tuple]:
    device = kind["device"]
    x, state = torch.zeros(rows, DIM, **kind), torch.zeros(rows, DIM, device=device)
    cum_p, wide, low = torch.zeros(rows, device=device), torch.zeros(DIM, device=device), torch.zeros(RANK, DIM)
    low = low.to(device)
    scale, bias = torch.zeros(LOOPS, RANK, device=device), torch.zeros(1, device=device)
    params = (wide, wide, low, scale, low, wide, bias, wide)
    rest = (0, None, THRESHOLD, EPS, LOOP_DIM)
    return {
        "loop_step": (x, x, x, state, cum_p, *params, *rest),
        "loop_step_": (x, x, x, state, cum_p, *params, *rest, x),
        "loop_step_backward": (x, state, cum_p, x, x, x, x, cum_p, *params, *rest),
    }


def samples(dtype: torch.dtype, device: str, tokens: int, past: int) -> dict[str, tuple]:
    """Arguments of every op for `tokens` new tokens after `past` cached ones, with activations of `dtype`."""
    kind = {"dtype": dtype, "device": device}
    return _dense(kind, tokens) | _moe(kind, tokens) | _mla(kind, tokens, past) | _loop_step(kind, tokens)
