"""Root mean square normalisation (Zhang and Sennrich, 2019), alone and with a residual add."""

from __future__ import annotations

import torch

from openmythos.ops.precision import wide


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight. x (..., D), weight (D) -> (..., D).

    The result has `dtype`, by default the promotion of both inputs' dtypes.
    """
    out_dtype = dtype or torch.promote_types(x.dtype, weight.dtype)
    compute = wide(torch.promote_types(x.dtype, weight.dtype))
    x = x.to(compute)
    scale = x.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()
    return (x * scale * weight.to(compute)).to(out_dtype)


def rms_norm_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(s), s) with s = x + residual. x and residual (..., D), weight (D); s in their promoted dtype."""
    total = x + residual
    return rms_norm(total, weight, eps, dtype), total


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `rms_norm` with respect to x and weight, in their dtypes."""
    compute = wide(torch.promote_types(x.dtype, weight.dtype))
    xw, g = x.to(compute), grad.to(compute)
    scale = xw.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()
    normed = xw * scale
    grad_weight = (g * normed).flatten(0, -2).sum(0) if x.dim() > 1 else g * normed
    g = g * weight.to(compute)
    grad_x = scale * (g - normed * (g * normed).mean(-1, keepdim=True))
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)
