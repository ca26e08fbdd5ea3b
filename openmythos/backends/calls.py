"""Calls of `openmythos_native` ops that have a CPU and a GPU kernel: allocate the outputs, run, return them."""

from __future__ import annotations

import torch

native = torch.ops.openmythos_native


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


def _step(h, e, block_out, h_out, cum_p, params, t, threshold, eps, loop_dim, outputs) -> None:
    rows = t.to(torch.int32).contiguous() if isinstance(t, torch.Tensor) else None
    scalar = 0 if rows is not None else t
    params = [None if tensor is None else tensor.contiguous() for tensor in params]
    native.loop_step(h, e, block_out, h_out, cum_p, *params, rows, scalar, threshold, eps, loop_dim, *outputs)


def loop_step(h, e, block_out, h_out, cum_p, *rest):
    """See `openmythos.reference.loop_step`."""
    params, tail = rest[:8], rest[8:]
    following = e.new_empty(h.shape if params[-1] is not None else (0,))
    new, new_out, new_p = h.new_empty(h.shape), h_out.new_empty(h.shape), cum_p.new_empty(cum_p.shape)
    outputs = (new, new_out, new_p, following if params[-1] is not None else None)
    _step(h, e, block_out, h_out, cum_p, params, *tail, outputs)
    return new, new_out, new_p, following


def loop_step_(h, e, block_out, h_out, cum_p, *rest) -> None:
    """See `openmythos.reference.loop_step_`."""
    params, x_next, tail = rest[:8], rest[8], rest[9:]
    _step(h, e, block_out, h_out, cum_p, params, *tail, (h, h_out, cum_p, x_next))
