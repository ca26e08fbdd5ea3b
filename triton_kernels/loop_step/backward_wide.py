"""Gradients of rows that are too wide for registers: one pass over each row for its sums, then one by column blocks.

Both passes read from memory: 5 + 6 reads and 3 writes of a row. The products with the LoRA matrices run outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.loop_step.parts import (
    Gradients,
    Outputs,
    embedding,
    frequencies,
    halting_gradients,
    load_depths,
    load_rows,
    load_vector,
    loop_embedding,
    store_rows,
    update,
)

if TYPE_CHECKING:
    from openmythos.ops.loop_step import LoopParams, LoopStepBackward

# Scalars per row that the second pass reads: the step's weight, the logit's gradient, and two of the norm.
NUMBERS = 4
# Programs per processor in the second pass.
PROGRAMS = 4


@triton.jit(do_not_specialize=["n_rows", "t"])
def _loop_step_wide_sums_kernel(
    p_grad_out,
    p_grad_cum,
    p_grad_next,
    p_h,
    p_e,
    p_block,
    p_cum,
    p_A,
    p_B,
    p_halt_w,
    p_halt_b,
    p_norm_w,
    p_embedding,
    p_t,
    p_cum_grad,
    p_logit_grad,
    p_numbers,
    n_rows,
    width,
    t,
    threshold,
    eps,
    loop_dim,
    grad_out_stride,
    grad_next_stride,
    h_stride,
    e_stride,
    block_stride,
    PER_ROW: tl.constexpr,
    NEXT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    m_row = o_row < n_rows
    b_t = load_depths(p_t, o_row, m_row, t, PER_ROW)
    b_logits = tl.zeros([ROWS, BLOCK], tl.float32)
    b_weights = tl.zeros([ROWS, BLOCK], tl.float32)
    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    b_products = tl.zeros([ROWS, BLOCK], tl.float32)
    for i_d in range(0, width, BLOCK):
        o_d = i_d + tl.arange(0, BLOCK)
        m_d = o_d < width
        mask = m_row & m_d[None, :]
        b_new, _h, b_e = update(p_h, p_e, p_block, p_A, p_B, o_row, h_stride, e_stride, block_stride, o_d, m_d, mask)
        b_logits += b_new * load_vector(p_halt_w, o_d, m_d)
        b_weights += b_new * load_rows(p_grad_out, o_row, grad_out_stride, o_d, mask)
        if NEXT:
            b_source = b_new + b_e + loop_embedding(b_t + 1, p_embedding, o_d, loop_dim, PER_ROW)
            b_outer = load_rows(p_grad_next, o_row, grad_next_stride, o_d, mask).to(tl.float32)
            b_squares += b_source * b_source
            b_products += b_outer * load_vector(p_norm_w, o_d, m_d) * b_source
    b_logit = tl.sum(b_logits, axis=1, keep_dims=True) + tl.load(p_halt_b).to(tl.float32)
    b_cum = tl.load(p_cum + o_row, mask=m_row, other=0.0)
    b_p_grad = tl.load(p_grad_cum + o_row, mask=m_row, other=0.0)
    b_weight, b_logit_grad, b_cum_grad = halting_gradients(
        b_logit, b_cum, tl.sum(b_weights, axis=1, keep_dims=True), b_p_grad, threshold
    )
    b_norm = tl.rsqrt(tl.sum(b_squares, axis=1, keep_dims=True) / width + eps)
    tl.store(p_cum_grad + o_row, b_cum_grad, mask=m_row)
    tl.store(p_logit_grad + o_row, b_logit_grad, mask=m_row)
    tl.store(p_numbers + o_row * 4, b_weight, mask=m_row)
    tl.store(p_numbers + o_row * 4 + 1, b_logit_grad, mask=m_row)
    tl.store(p_numbers + o_row * 4 + 2, b_norm, mask=m_row)
    b_mean = tl.sum(b_products, axis=1, keep_dims=True) * b_norm / width
    tl.store(p_numbers + o_row * 4 + 3, b_mean, mask=m_row)


@triton.jit(do_not_specialize=["n_rows", "t"])
def _loop_step_wide_columns_kernel(
    p_grad_h,
    p_grad_out,
    p_grad_next,
    p_h,
    p_e,
    p_block,
    p_A,
    p_B,
    p_halt_w,
    p_norm_w,
    p_embedding,
    p_t,
    p_numbers,
    p_h_grad,
    p_e_grad,
    p_new_grad,
    p_parts,
    n_rows,
    width,
    t,
    loop_dim,
    grad_h_stride,
    grad_out_stride,
    grad_next_stride,
    h_stride,
    e_stride,
    block_stride,
    PER_ROW: tl.constexpr,
    NEXT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < width
    b_A, b_B = load_vector(p_A, o_d, m_d), load_vector(p_B, o_d, m_d)
    b_halt_w = load_vector(p_halt_w, o_d, m_d)
    b_A_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    b_B_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    b_halt_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    b_norm_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for i_row in range(tl.program_id(1) * ROWS, n_rows, tl.num_programs(1) * ROWS):
        o_row = (i_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        m_row = o_row < n_rows
        mask = m_row & m_d[None, :]
        b_t = load_depths(p_t, o_row, m_row, t, PER_ROW)
        b_weight = tl.load(p_numbers + o_row * 4, mask=m_row, other=0.0)
        b_logit_grad = tl.load(p_numbers + o_row * 4 + 1, mask=m_row, other=0.0)
        b_new, b_h, b_e = update(p_h, p_e, p_block, p_A, p_B, o_row, h_stride, e_stride, block_stride, o_d, m_d, mask)
        b_grad = load_rows(p_grad_h, o_row, grad_h_stride, o_d, mask).to(tl.float32)
        b_grad += b_weight * load_rows(p_grad_out, o_row, grad_out_stride, o_d, mask) + b_logit_grad * b_halt_w
        b_halt_sum += b_logit_grad * b_new
        b_e_grad = tl.zeros([ROWS, BLOCK], tl.float32)
        if NEXT:
            b_norm = tl.load(p_numbers + o_row * 4 + 2, mask=m_row, other=0.0)
            b_mean = tl.load(p_numbers + o_row * 4 + 3, mask=m_row, other=0.0)
            b_source = b_new + b_e + loop_embedding(b_t + 1, p_embedding, o_d, loop_dim, PER_ROW)
            b_outer = load_rows(p_grad_next, o_row, grad_next_stride, o_d, mask).to(tl.float32)
            b_source *= b_norm
            b_norm_sum += b_outer * b_source
            b_e_grad = b_norm * (b_outer * load_vector(p_norm_w, o_d, m_d) - b_source * b_mean)
            b_grad += b_e_grad
        b_A_sum += b_grad * b_h
        b_B_sum += b_grad * b_e
        store_rows(p_h_grad, o_row, width, o_d, mask, b_grad * b_A)
        store_rows(p_e_grad, o_row, width, o_d, mask, b_e_grad + b_grad * b_B)
        store_rows(p_new_grad, o_row, width, o_d, mask, b_grad)
    p_part = p_parts + tl.program_id(1).to(tl.int64) * 4 * width + o_d
    tl.store(p_part, tl.sum(b_A_sum, axis=0), mask=m_d)
    tl.store(p_part + width, tl.sum(b_B_sum, axis=0), mask=m_d)
    tl.store(p_part + 2 * width, tl.sum(b_halt_sum, axis=0), mask=m_d)
    tl.store(p_part + 3 * width, tl.sum(b_norm_sum, axis=0), mask=m_d)


def wide_backward(
    grads: Gradients, call: LoopStepBackward, params: LoopParams, x: torch.Tensor, out: Outputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes the gradients of rows into `out`; returns parts (P, 4, D) for A, B, halt_w and norm_w, and d logit (N).

    x: block_out with its delta.
    """
    grad_h, grad_out, grad_p, grad_next = grads
    h, e, cum_p = call.h, call.e, call.cum_p.contiguous()
    A, B, halt_w, halt_b, norm_w = params.A, params.B, params.halt_w, params.halt_b, params.norm_w
    threshold, eps, loop_dim = call.threshold, call.eps, call.loop_dim
    (rows, width), target = h.shape, target_of(h)
    per_row, depth = call.t_rows is not None, call.t
    depths = call.t_rows.contiguous() if per_row else None
    table = frequencies(loop_dim, h.device) if per_row else embedding(loop_dim, h.device, depth + 1)
    logit = torch.empty(rows, dtype=torch.float32, device=h.device)
    numbers = torch.empty((rows, NUMBERS), dtype=torch.float32, device=h.device)
    constexprs = {"PER_ROW": per_row, "NEXT": norm_w is not None}
    next_stride = 0 if grad_next is None else grad_next.stride(0)
    strides = (h.stride(0), e.stride(0), x.stride(0))
    chosen = config("loop_step_wide_sums", target)
    launch(
        _loop_step_wide_sums_kernel,
        (triton.cdiv(rows, chosen.constexprs["ROWS"]),),
        *(grad_out, grad_p, grad_next, h, e, x, cum_p, A, B, halt_w, halt_b, norm_w, table, depths),
        *(out.cum, logit, numbers, rows, width, depth, threshold, eps, loop_dim),
        *(grad_out.stride(0), next_stride, *strides),
        **constexprs,
        **chosen.constexprs,
        options=chosen.options,
    )
    chosen = config("loop_step_wide_columns", target)
    blocks = triton.cdiv(width, chosen.constexprs["BLOCK"])
    programs = max(1, PROGRAMS * target.processors // blocks)
    programs = min(triton.cdiv(rows, chosen.constexprs["ROWS"]), programs)
    parts = torch.empty((programs, 4, width), dtype=torch.float32, device=h.device)
    launch(
        _loop_step_wide_columns_kernel,
        (blocks, programs),
        *(grad_h, grad_out, grad_next, h, e, x, A, B, halt_w, norm_w, table, depths),
        *(numbers, out.h, out.e, out.new, parts, rows, width, depth, loop_dim),
        *(grad_h.stride(0), grad_out.stride(0), next_stride, *strides),
        **constexprs,
        **chosen.constexprs,
        options=chosen.options,
    )
    return parts, logit
