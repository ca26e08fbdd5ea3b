"""rms_norm, alone and with a residual add in the same pass."""

from __future__ import annotations

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, autograd, define, direct


def _out_dtype(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or torch.promote_types(x.dtype, weight.dtype)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    if weight.dim() != 1 or x.dim() < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x {tuple(x.shape)}: its last dimension must equal that of weight {tuple(weight.shape)}")


def _rms_norm_fake(x, weight, eps, dtype=None):
    return torch.empty(x.shape, dtype=_out_dtype(x, weight, dtype), device=x.device)


def _rms_norm_add_fake(x, residual, weight, eps, dtype=None):
    total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    return _rms_norm_fake(total, weight, eps, dtype), total


def _rms_norm_backward_fake(grad, x, weight, eps):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


define(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps, ScalarType? dtype=None) -> Tensor",
    _rms_norm_fake,
    lambda x, weight, eps, dtype=None: reference.rms_norm(x, weight, eps, dtype).contiguous(),
)
define(
    "rms_norm_add",
    "(Tensor x, Tensor residual, Tensor weight, float eps, ScalarType? dtype=None) -> (Tensor, Tensor)",
    _rms_norm_add_fake,
    lambda *args: tuple(part.contiguous() for part in reference.rms_norm_add(*args)),
)
define(
    "rms_norm_backward",
    "(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    _rms_norm_backward_fake,
    lambda *args: tuple(part.contiguous() for part in reference.rms_norm_backward(*args)),
)


def _rms_norm_setup(ctx, inputs, output):
    x, weight, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_autograd(ctx, grad):
    x, weight = ctx.saved_tensors
    return *torch.ops.openmythos.rms_norm_backward(grad, x, weight, ctx.eps), None, None


def _rms_norm_add_setup(ctx, inputs, output):
    x, residual, weight, ctx.eps, _ = inputs
    ctx.dtypes = x.dtype, residual.dtype
    ctx.save_for_backward(output[1], weight)


def _rms_norm_add_autograd(ctx, grad, grad_total):
    total, weight = ctx.saved_tensors
    d_total, d_weight = torch.ops.openmythos.rms_norm_backward(grad, total, weight, ctx.eps)
    d_total = d_total + grad_total
    return d_total.to(ctx.dtypes[0]), d_total.to(ctx.dtypes[1]), d_weight, None, None


autograd("rms_norm", _rms_norm_setup, _rms_norm_autograd)
autograd("rms_norm_add", _rms_norm_add_setup, _rms_norm_add_autograd)


@accepts_backend
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    x (..., D), weight (D) -> (..., D) in `dtype`, by default the promotion of both dtypes.

    Raises:
        ValueError: when the last dimension of x is not that of weight.
    """
    _check(x, weight)
    if device := direct(x):
        return dispatch.select("rms_norm", device, x, weight, eps, dtype)(x, weight, eps, dtype)
    return torch.ops.openmythos.rms_norm(x, weight, eps, dtype)


@accepts_backend
def rms_norm_add(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(s, weight), s) with s = x + residual, in one pass over the rows.

    x and residual (..., D) of one shape, weight (D); s has their promoted dtype, the norm `dtype`, by
    default the promotion of s and weight.

    Raises:
        ValueError: when the shapes do not agree.
    """
    _check(x, weight)
    if x.shape != residual.shape:
        raise ValueError(f"residual {tuple(residual.shape)}: must have the shape of x, {tuple(x.shape)}")
    args = (x, residual, weight, eps, dtype)
    if device := direct(x):
        return dispatch.select("rms_norm_add", device, *args)(*args)
    return torch.ops.openmythos.rms_norm_add(*args)
