"""rms_norm, alone and with a residual add in the same pass."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, autograd, contiguous, define, direct, gradients
from openmythos.ops.rms_norm import reference


class RmsNorm(NamedTuple):
    """x (..., D), weight (D); `dtype` is the result's, None for the promotion of both dtypes."""

    x: torch.Tensor
    weight: torch.Tensor
    eps: float
    dtype: torch.dtype | None = None


class RmsNormAdd(NamedTuple):
    """x and residual (..., D), weight (D); `dtype` as in RmsNorm."""

    x: torch.Tensor
    residual: torch.Tensor
    weight: torch.Tensor
    eps: float
    dtype: torch.dtype | None = None


class RmsNormBackward(NamedTuple):
    """grad and x (..., D), weight (D)."""

    grad: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    eps: float


def _fake(call: RmsNorm) -> torch.Tensor:
    dtype = call.dtype or torch.promote_types(call.x.dtype, call.weight.dtype)
    return torch.empty(call.x.shape, dtype=dtype, device=call.x.device)


def _add_fake(call: RmsNormAdd) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(call.x.dtype, call.residual.dtype)
    total = torch.empty(call.x.shape, dtype=dtype, device=call.x.device)
    return _fake(RmsNorm(total, call.weight, call.eps, call.dtype)), total


def _backward_fake(call: RmsNormBackward) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device), torch.empty_like(call.weight)


define(
    "rms_norm",
    RmsNorm,
    "Tensor",
    fake=_fake,
    reference=lambda call: reference.rms_norm(*call).contiguous(),
)
define(
    "rms_norm_add",
    RmsNormAdd,
    "(Tensor, Tensor)",
    fake=_add_fake,
    reference=lambda call: contiguous(reference.rms_norm_add(*call)),
)
define(
    "rms_norm_backward",
    RmsNormBackward,
    "(Tensor, Tensor)",
    fake=_backward_fake,
    reference=lambda call: contiguous(reference.rms_norm_backward(*call)),
)


def _setup(ctx, inputs, output):
    call = RmsNorm(*inputs)
    ctx.eps = call.eps
    ctx.save_for_backward(call.x, call.weight)


def _autograd(ctx, grad):
    x, weight = ctx.saved_tensors
    d_x, d_weight = torch.ops.openmythos.rms_norm_backward(grad, x, weight, ctx.eps)
    return gradients(RmsNorm, x=d_x, weight=d_weight)


def _add_setup(ctx, inputs, output):
    call = RmsNormAdd(*inputs)
    ctx.eps, ctx.dtypes = call.eps, (call.x.dtype, call.residual.dtype)
    _, total = output
    ctx.save_for_backward(total, call.weight)


def _add_autograd(ctx, grad, grad_total):
    total, weight = ctx.saved_tensors
    d_total, d_weight = torch.ops.openmythos.rms_norm_backward(grad, total, weight, ctx.eps)
    d_total = d_total + grad_total
    x_dtype, residual_dtype = ctx.dtypes
    return gradients(RmsNormAdd, x=d_total.to(x_dtype), residual=d_total.to(residual_dtype), weight=d_weight)


autograd("rms_norm", _setup, _autograd)
autograd("rms_norm_add", _add_setup, _add_autograd)


def _check_weight(x: torch.Tensor, weight: torch.Tensor) -> None:
    if weight.dim() != 1 or x.dim() < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x {tuple(x.shape)}: its last dimension must equal that of weight {tuple(weight.shape)}")


@accepts_backend
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    x (..., D), weight (D) -> (..., D) in `dtype`, by default the promotion of both dtypes.

    Raises:
        ValueError: when the last dimension of x is not that of weight.
    """
    _check_weight(x, weight)
    call = RmsNorm(x, weight, eps, dtype)
    if device := direct(x):
        return dispatch.select("rms_norm", device, call)(call)
    return torch.ops.openmythos.rms_norm(*call)


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
    _check_weight(x, weight)
    if x.shape != residual.shape:
        raise ValueError(f"residual {tuple(residual.shape)}: must have the shape of x, {tuple(x.shape)}")
    call = RmsNormAdd(x, residual, weight, eps, dtype)
    if device := direct(x):
        return dispatch.select("rms_norm_add", device, call)(call)
    return torch.ops.openmythos.rms_norm_add(*call)
