"""Calls of `openmythos_native` ops: allocate the outputs, run, return them.

Those of the norms and the loop step serve the CPU and GPUs, those of the experts GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

native = torch.ops.openmythos_native
_CONTIGUOUS = torch.Tensor.contiguous


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., D) as (N, D)."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """See `openmythos.reference.rms_norm`."""
    out = torch.empty(x.shape, dtype=dtype or torch.promote_types(x.dtype, weight.dtype), device=x.device)
    native.rms_norm(as_rows(x), None, weight, eps, as_rows(out), None)
    return out


def rms_norm_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `openmythos.reference.rms_norm_add`."""
    total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    out = torch.empty(x.shape, dtype=dtype or torch.promote_types(total.dtype, weight.dtype), device=x.device)
    native.rms_norm(as_rows(x), as_rows(residual), weight, eps, as_rows(out), as_rows(total))
    return out, total


def mla_attention(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    scale: float,
    causal: bool,
    seq_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    form: str = "decompressed",
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `openmythos.reference.mla_attention`."""
    batch, new, heads, _ = q_nope.shape
    out = torch.empty((batch, new, heads, w_uv.shape[1]), dtype=q_nope.dtype, device=q_nope.device)
    lse = torch.empty((batch, heads, new), dtype=torch.float32, device=q_nope.device)
    tensors = (q_nope, q_rope, latent, k_rope, w_uk, w_uv)
    native.mla_attention(*tensors, scale, causal, seq_lens, block_table, form == "absorbed", out, lse)
    return out, lse


def _step(h, e, block_out, h_out, cum_p, params, t, threshold, eps, loop_dim, outputs) -> None:
    # isinstance(t, torch.Tensor) is slow where the answer is no
    own_depths = not isinstance(t, int) and isinstance(t, torch.Tensor)
    rows, scalar = (t.to(torch.int32).contiguous(), 0) if own_depths else (None, t)
    *params, norm_w = params
    params = map(_CONTIGUOUS, params)
    norm_w = None if norm_w is None else norm_w.contiguous()
    native.loop_step(h, e, block_out, h_out, cum_p, *params, norm_w, rows, scalar, threshold, eps, loop_dim, *outputs)


def loop_step(h, e, block_out, h_out, cum_p, *rest):
    """See `openmythos.reference.loop_step`."""
    *params, t, threshold, eps, loop_dim = rest
    following = e.new_empty(h.shape if params[-1] is not None else (0,))
    new, new_out, new_p = h.new_empty(h.shape), h_out.new_empty(h.shape), cum_p.new_empty(cum_p.shape)
    outputs = (new, new_out, new_p, following if params[-1] is not None else None)
    _step(h, e, block_out, h_out, cum_p, params, t, threshold, eps, loop_dim, outputs)
    return new, new_out, new_p, following


def loop_step_(h, e, block_out, h_out, cum_p, *rest) -> None:
    """See `openmythos.reference.loop_step_`."""
    *params, x_next, t, threshold, eps, loop_dim = rest
    _step(h, e, block_out, h_out, cum_p, params, t, threshold, eps, loop_dim, (h, h_out, cum_p, x_next))


def moe_route(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `openmythos.reference.moe_route`."""
    ids = torch.empty((logits.shape[0], k), dtype=torch.int32, device=logits.device)
    weights = torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    counts = torch.empty(logits.shape[1], dtype=torch.int32, device=logits.device)
    native.moe_route(logits, None if bias is None else bias.float().contiguous(), ids, weights, counts)
    return ids, weights, counts


def moe_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """See `openmythos.reference.moe_experts`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    native.moe_experts(x, ids, weights.float(), gate_up, down, out)
    return out


def moe(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """`moe_experts` plus down(silu(gate x) * up x) of every (gate, up, down) in `shared`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = [list(part) for part in zip(*shared, strict=True)] or [[], [], []]
    native.moe(x, ids, weights.float(), gate_up, down, *parts, out)
    return out
