"""One recurrent step: LoRA delta, LTI injection, ACT halting and the next loop's input norm.

ACT: Adaptive Computation Time (Graves, arXiv 1603.08983). LoRA over depth: Bae et al., arXiv 2410.20672.
"""

from __future__ import annotations

import torch

from openmythos.ops.precision import wide
from openmythos.ops.rms_norm.reference import rms_norm, rms_norm_backward

THETA = 10000.0


def loop_embedding(
    t: int | torch.Tensor, loop_dim: int, device: torch.device | None = None, theta: float = THETA
) -> torch.Tensor:
    """Sinusoidal embedding of loop index t: [sin | cos] over `loop_dim` channels, in float32.

    t an int -> (loop_dim), or a tensor (N) -> (N, loop_dim).
    """
    device = t.device if isinstance(t, torch.Tensor) else device
    frequencies = theta ** (-torch.arange(0, loop_dim, 2, device=device, dtype=torch.float32) / loop_dim)
    angles = (t[:, None].float() if isinstance(t, torch.Tensor) else t) * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :loop_dim]


def _depth(t: int, t_rows: torch.Tensor | None) -> int | torch.Tensor:
    return t if t_rows is None else t_rows


def _scale_index(t: int | torch.Tensor, lora_scale: torch.Tensor) -> int | torch.Tensor:
    """Index into the per-loop scale: loops past its end use the last one."""
    last = lora_scale.shape[0] - 1
    return t.long().clamp(max=last) if isinstance(t, torch.Tensor) else min(t, last)


def _update(h, e, block_out, A, B, lora_down, lora_scale, lora_b, rows, compute):
    """h' = A h + B e + x with x = block_out + ((block_out lora_down^T) * scale) lora_b, and what backward reuses."""
    x = block_out.to(compute)
    low = x @ lora_down.to(compute).T
    scale = lora_scale[rows].to(compute)
    x = x + (low * scale) @ lora_b.to(compute)
    return A.to(compute) * h.to(compute) + B.to(compute) * e.to(compute) + x, low, scale


def loop_step(
    h: torch.Tensor,
    e: torch.Tensor,
    block_out: torch.Tensor,
    h_out: torch.Tensor,
    cum_p: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    lora_down: torch.Tensor,
    lora_scale: torch.Tensor,
    lora_b: torch.Tensor,
    halt_w: torch.Tensor,
    halt_b: torch.Tensor,
    norm_w: torch.Tensor | None,
    t: int,
    t_rows: torch.Tensor | None,
    threshold: float,
    eps: float,
    loop_dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The new h, h_out and cum_p, and the next block input.

    x = block_out + ((block_out lora_down^T) * lora_scale[min(t, L-1)]) lora_b; h' = A h + B e + x;
    p = sigmoid(h' . halt_w + halt_b); a row runs while cum_p < threshold, its weight is p, or what is
    left of 1 on the step that crosses; h_out += weight h'; cum_p += p; next = rms_norm(h' + emb(t+1) + e).

    h, e, block_out (N, D) in any dtype, h_out (N, D) and cum_p (N) float32 or wider; A, B, halt_w, norm_w
    (D), lora_down and lora_b (r, D), lora_scale (L, r), halt_b (1); t the loop of every row, or t_rows (N)
    integers, each row's own. Without norm_w there is no next input: an empty tensor. The next input has e's dtype.
    """
    compute, depth = wide(h_out.dtype), _depth(t, t_rows)
    rows = _scale_index(depth, lora_scale)
    new, _, _ = _update(h, e, block_out, A, B, lora_down, lora_scale, lora_b, rows, compute)
    p = torch.sigmoid(new @ halt_w.to(compute) + halt_b.to(compute))
    running = cum_p < threshold
    weight = torch.where(cum_p + p >= threshold, (1 - cum_p).clamp(min=0), p) * running
    new_out = h_out + weight[:, None] * new
    new_p = cum_p + p * running
    if norm_w is None:
        return new.to(h.dtype), new_out, new_p, h.new_empty(0, dtype=e.dtype)
    source = _next_source(new, e, depth, loop_dim)
    return new.to(h.dtype), new_out, new_p, rms_norm(source, norm_w.to(compute), eps, e.dtype)


def _next_source(new: torch.Tensor, e: torch.Tensor, t: int | torch.Tensor, loop_dim: int) -> torch.Tensor:
    source = new + e.to(new.dtype)
    embedding = loop_embedding(t + 1, loop_dim, new.device).to(new.dtype)
    return torch.cat((source[:, :loop_dim] + embedding, source[:, loop_dim:]), dim=1)


def loop_step_backward(
    grad_h: torch.Tensor,
    grad_out: torch.Tensor,
    grad_p: torch.Tensor,
    grad_next: torch.Tensor | None,
    h: torch.Tensor,
    e: torch.Tensor,
    block_out: torch.Tensor,
    cum_p: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    lora_down: torch.Tensor,
    lora_scale: torch.Tensor,
    lora_b: torch.Tensor,
    halt_w: torch.Tensor,
    halt_b: torch.Tensor,
    norm_w: torch.Tensor | None,
    t: int,
    t_rows: torch.Tensor | None,
    threshold: float,
    eps: float,
    loop_dim: int,
) -> tuple[torch.Tensor, ...]:
    """Gradients for h, e, block_out, cum_p, A, B, lora_down, lora_scale, lora_b, halt_w, halt_b, norm_w.

    The gradient of h_out is grad_out itself. h' is recomputed. Without norm_w its gradient is an empty tensor.
    """
    compute, depth = wide(grad_out.dtype), _depth(t, t_rows)
    rows = _scale_index(depth, lora_scale)
    new, low, scale = _update(h, e, block_out, A, B, lora_down, lora_scale, lora_b, rows, compute)
    p = torch.sigmoid(new @ halt_w.to(compute) + halt_b.to(compute))
    running = cum_p < threshold
    crosses = cum_p + p >= threshold
    weight = torch.where(crosses, (1 - cum_p).clamp(min=0), p) * running

    d_new = grad_h.to(compute) + weight[:, None] * grad_out
    d_weight = (grad_out * new).sum(-1) * running
    d_p = torch.where(crosses, torch.zeros_like(p), d_weight) + grad_p * running
    d_cum = grad_p - torch.where(crosses & (cum_p <= 1), d_weight, torch.zeros_like(p))
    d_z = d_p * p * (1 - p)
    d_new = d_new + d_z[:, None] * halt_w.to(compute)
    d_e = torch.zeros_like(new)
    d_norm = h.new_empty(0, dtype=compute)
    if norm_w is not None and grad_next is not None:
        d_source, d_norm = rms_norm_backward(
            grad_next.to(compute), _next_source(new, e, depth, loop_dim), norm_w.to(compute), eps
        )
        d_new, d_e = d_new + d_source, d_source

    d_scaled = d_new @ lora_b.to(compute).T
    d_low = d_scaled * scale
    d_scale = torch.zeros(lora_scale.shape, dtype=compute, device=h.device)
    if t_rows is not None:
        d_scale.index_add_(0, rows, d_scaled * low)
    else:
        d_scale[rows] = (d_scaled * low).sum(0)
    x = block_out.to(compute)
    return (
        (d_new * A.to(compute)).to(h.dtype),
        (d_e + d_new * B.to(compute)).to(e.dtype),
        (d_new + d_low @ lora_down.to(compute)).to(block_out.dtype),
        d_cum,
        (d_new * h.to(compute)).sum(0).to(A.dtype),
        (d_new * e.to(compute)).sum(0).to(B.dtype),
        (d_low.T @ x).to(lora_down.dtype),
        d_scale.to(lora_scale.dtype),
        ((low * scale).T @ d_new).to(lora_b.dtype),
        (d_z @ new).to(halt_w.dtype),
        d_z.sum().reshape(1).to(halt_b.dtype),
        d_norm.to(norm_w.dtype) if norm_w is not None else d_norm,
    )
