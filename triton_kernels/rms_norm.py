"""rms_norm: x * rsqrt(mean(x^2) + eps) * weight, one program a row, optionally of the sum x + residual."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of


@triton.jit
def _rms_norm_kernel(
    x, residual, weight, out, total, width, eps, x_stride, residual_stride, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK)
    inside = o_d < width
    b_x = tl.load(x + row * x_stride + o_d, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    if ADD:
        b_x += tl.load(residual + row * residual_stride + o_d, mask=inside, other=0.0).to(tl.float32)
        b_total = b_x.to(total.dtype.element_ty)
        tl.store(total + row * width + o_d, b_total, mask=inside)
        b_x = b_total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(b_x * b_x) / width + eps)
    b_w = tl.load(weight + o_d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + o_d, (b_x * scale * b_w).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x (..., D) with its last stride 1, weight (D) -> (..., D) in `dtype`, else the wider of x's and weight's."""
    rows = x.flatten(0, -2) if x.dim() != 2 else x
    out = torch.empty(x.shape, dtype=dtype or torch.promote_types(x.dtype, weight.dtype), device=x.device)
    width = x.shape[-1]
    chosen = config("rms_norm", target_of(x), width=width)
    launch(
        _rms_norm_kernel, (rows.shape[0],), rows, None, weight, out, None, width, eps, rows.stride(0), 0,
        ADD=False, BLOCK=triton.next_power_of_2(width), **chosen.constexprs, options=chosen.options,
    )
    return out
