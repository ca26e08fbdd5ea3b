"""rms_norm: x * rsqrt(mean(x^2) + eps) * weight, optionally of the sum x + residual, and the gradients.

Rows are held in registers, so every tensor is read and written once. In 16 bits the forward reads 2 and writes 2 bytes
per element, 6 and 4 with a residual; the backward 4 and 2. A program takes one wide row or several narrow ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.column_sum import column_sum
from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of

if TYPE_CHECKING:
    from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd, RmsNormBackward

# With wider rows the backward kernel lacks registers for the weight's gradient.
BACKWARD_BLOCK = 8192
# Programs of the backward kernel per processor: each sums the weight's gradient over its own rows.
PROGRAMS = 4


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm_kernel(
    p_x,
    p_residual,
    p_weight,
    p_out,
    p_total,
    n_rows,
    width,
    eps,
    x_stride,
    residual_stride,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < width
    mask = (o_row < n_rows) & m_d[None, :]
    b_x = tl.load(p_x + o_row * x_stride + o_d[None, :], mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    if ADD:
        b_x += tl.load(p_residual + o_row * residual_stride + o_d[None, :], mask=mask, other=0.0).to(tl.float32)
        # the norm is that of the sum as it is stored
        b_total = b_x.to(p_total.dtype.element_ty)
        tl.store(p_total + o_row * width + o_d[None, :], b_total, mask=mask)
        b_x = b_total.to(tl.float32)
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_scale = tl.rsqrt(tl.sum(b_x * b_x, axis=1, keep_dims=True) / width + eps)
    b_out = b_x * b_scale * b_weight[None, :]
    tl.store(p_out + o_row * width + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm_backward_kernel(
    p_grad,
    p_x,
    p_weight,
    p_grad_x,
    p_parts,
    n_rows,
    width,
    eps,
    grad_stride,
    x_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    # this program's columns: all of them, or one block; the other blocks' programs read the same rows at the same time
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < width
    b_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for i_row in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        o_row = (i_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        m_row = o_row < n_rows
        p_row, p_outer = p_x + o_row * x_stride, p_grad + o_row * grad_stride
        if not WHOLE:
            b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
            b_products = tl.zeros([ROWS, BLOCK], tl.float32)
            for i_d in range(0, width, BLOCK):
                o_other = i_d + tl.arange(0, BLOCK)
                m_other = o_other < width
                b_x = tl.load(p_row + o_other[None, :], mask=m_row & m_other[None, :], other=0.0).to(tl.float32)
                b_grad = tl.load(p_outer + o_other[None, :], mask=m_row & m_other[None, :], other=0.0)
                b_weight = tl.load(p_weight + o_other, mask=m_other, other=0.0).to(tl.float32)[None, :]
                b_squares += b_x * b_x
                b_products += b_grad.to(tl.float32) * b_weight * b_x
        mask = m_row & m_d[None, :]
        b_x = tl.load(p_row + o_d[None, :], mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
        b_grad = tl.load(p_outer + o_d[None, :], mask=mask, other=0.0).to(tl.float32)
        b_weighted = b_grad * tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
        if WHOLE:
            b_squares, b_products = b_x * b_x, b_weighted * b_x
        b_scale = tl.rsqrt(tl.sum(b_squares, axis=1, keep_dims=True) / width + eps)
        b_mean = tl.sum(b_products, axis=1, keep_dims=True) * b_scale / width
        b_normed = b_x * b_scale
        b_sum += b_grad * b_normed
        b_out = b_scale * (b_weighted - b_normed * b_mean)
        tl.store(p_grad_x + o_row * width + o_d[None, :], b_out.to(p_grad_x.dtype.element_ty), mask=mask)
    o_part = tl.program_id(0).to(tl.int64) * width + o_d
    tl.store(p_parts + o_part, tl.sum(b_sum, axis=0), mask=m_d)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    summed, total = x.dtype, None
    rows, other = _rows(x), None
    if residual is not None:
        other, summed = _rows(residual), torch.promote_types(x.dtype, residual.dtype)
        total = torch.empty(x.shape, dtype=summed, device=x.device)
    out = torch.empty(x.shape, dtype=dtype or torch.promote_types(summed, weight.dtype), device=x.device)
    n_rows, width = rows.shape
    chosen = config("rms_norm", target_of(x), width=width)
    launch(
        _rms_norm_kernel,
        (triton.cdiv(n_rows, chosen.constexprs["ROWS"]),),
        *(rows, other, weight, out, total),
        *(n_rows, width, eps, rows.stride(0), 0 if other is None else other.stride(0)),
        ADD=residual is not None,
        BLOCK=triton.next_power_of_2(width),
        **chosen.constexprs,
        options=chosen.options,
    )
    return out, total


def rms_norm(call: RmsNorm) -> torch.Tensor:
    """x (..., D) with a last stride of 1, weight (D) -> (..., D) in `dtype`, else the wider of x's and weight's."""
    out, _ = _forward(call.x, None, call.weight, call.eps, call.dtype)
    return out


def rms_norm_add(call: RmsNormAdd) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm of s = x + residual, and s in their promoted dtype."""
    return _forward(call.x, call.residual, call.weight, call.eps, call.dtype)


def rms_norm_backward(call: RmsNormBackward) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients for x and weight, in their dtypes."""
    grad, x, weight, eps = call.grad, call.x, call.weight, call.eps
    # An expanded gradient from autograd has a last stride of 0.
    outer, rows = _rows(grad if grad.stride(-1) == 1 else grad.contiguous()), _rows(x)
    n_rows, width = rows.shape
    target = target_of(x)
    chosen = config("rms_norm_backward", target, width=width)
    programs = min(triton.cdiv(n_rows, chosen.constexprs["ROWS"]), PROGRAMS * target.processors)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = torch.empty((programs, width), dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(width), BACKWARD_BLOCK)
    launch(
        _rms_norm_backward_kernel,
        (programs, triton.cdiv(width, block)),
        *(outer, rows, weight, grad_x, parts),
        *(n_rows, width, eps, outer.stride(0), rows.stride(0)),
        BLOCK=block,
        WHOLE=width <= block,
        **chosen.constexprs,
        options=chosen.options,
    )
    return grad_x, column_sum(parts, weight.dtype)
