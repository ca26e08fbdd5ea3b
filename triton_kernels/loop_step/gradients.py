"""Sums over rows in a fixed order: gradients of the LoRA matrices and scales and of the halting bias, and of parts.

The gradients of the LoRA matrices are two products over the rows, which read block_out and the gradient of the
low-rank delta, N x D each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of

if TYPE_CHECKING:
    from openmythos.ops.loop_step import LoopParams

# Columns per program that adds up parts, and elements of a tile of per-row values.
COLUMNS, TILE = 128, 8192


@triton.jit
def _load_scales(p_scale, p_t, o_row, m_row, o_rank, m_rank, t, last_loop, rank, PER_ROW: tl.constexpr):
    """The rows' LoRA scales, [ROWS, RANK] or [1, RANK]."""
    if PER_ROW:
        b_t = tl.minimum(tl.load(p_t + o_row, mask=m_row, other=0).to(tl.int32), last_loop)
        b_scale = tl.load(p_scale + b_t[:, None] * rank + o_rank[None, :], mask=m_rank[None, :], other=0.0)
    else:
        b_scale = tl.load(p_scale + tl.minimum(t, last_loop) * rank + o_rank, mask=m_rank, other=0.0)[None, :]
    return b_scale.to(tl.float32)


@triton.jit(do_not_specialize=["n_rows", "t", "last_loop"])
def _loop_step_lora_kernel(
    p_block,
    p_grad,
    p_low,
    p_scaled_grad,
    p_scale,
    p_t,
    p_parts,
    n_rows,
    width,
    rank,
    t,
    last_loop,
    block_stride,
    PER_ROW: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o_d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_d = o_d < width
    o_rank = tl.arange(0, RANK)
    m_rank = o_rank < rank
    b_down_sum = tl.zeros([RANK, COLUMNS], tl.float32)
    b_up_sum = tl.zeros([RANK, COLUMNS], tl.float32)
    for i_row in range(tl.program_id(1) * ROWS, n_rows, tl.num_programs(1) * ROWS):
        o_row = (i_row + tl.arange(0, ROWS)).to(tl.int64)
        m_row = o_row < n_rows
        mask = m_row[:, None] & m_d[None, :]
        b_x = tl.load(p_block + o_row[:, None] * block_stride + o_d[None, :], mask=mask, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + o_row[:, None] * width + o_d[None, :], mask=mask, other=0.0)  # [ROWS, COLUMNS]
        b_scale = _load_scales(p_scale, p_t, o_row, m_row, o_rank, m_rank, t, last_loop, rank, PER_ROW)
        o_low = o_row[:, None] * rank + o_rank[None, :]
        m_low = m_row[:, None] & m_rank[None, :]
        b_scaled = tl.load(p_low + o_low, mask=m_low, other=0.0) * b_scale  # [ROWS, RANK]
        b_low_grad = tl.load(p_scaled_grad + o_low, mask=m_low, other=0.0) * b_scale
        b_down_sum = tl.dot(tl.trans(b_low_grad), b_x, b_down_sum, input_precision="ieee")
        b_up_sum = tl.dot(tl.trans(b_scaled), b_grad, b_up_sum, input_precision="ieee")
    mask = m_rank[:, None] & m_d[None, :]
    p_part = p_parts + tl.program_id(1).to(tl.int64) * 2 * rank * width + o_rank[:, None] * width + o_d[None, :]
    tl.store(p_part, b_down_sum, mask=mask)
    tl.store(p_part + rank * width, b_up_sum, mask=mask)


@triton.jit(do_not_specialize=["n_rows", "t", "last_loop"])
def _loop_step_rows_kernel(
    p_low,
    p_scaled_grad,
    p_logit_grad,
    p_t,
    p_scale_grad,
    p_halt_b_grad,
    n_rows,
    rank,
    t,
    last_loop,
    PER_ROW: tl.constexpr,
    LORA: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
):
    # one program per row of the scale table; the first one also sums the gradient of the halting bias
    loop = tl.program_id(0)
    o_rank = tl.arange(0, RANK)
    m_rank = o_rank < rank
    b_scale_sum = tl.zeros([ROWS, RANK], tl.float32)
    b_bias_sum = tl.zeros([ROWS], tl.float32)
    for i_row in range(0, n_rows, ROWS):
        o_row = (i_row + tl.arange(0, ROWS)).to(tl.int64)
        m_row = o_row < n_rows
        if loop == 0:
            b_bias_sum += tl.load(p_logit_grad + o_row, mask=m_row, other=0.0)
        if LORA:
            b_t = tl.load(p_t + o_row, mask=m_row, other=0).to(tl.int32) if PER_ROW else tl.full([ROWS], t, tl.int32)
            m_low = (m_row & (tl.minimum(b_t, last_loop) == loop))[:, None] & m_rank[None, :]
            o_low = o_row[:, None] * rank + o_rank[None, :]
            b_low = tl.load(p_low + o_low, mask=m_low, other=0.0)
            b_scale_sum += b_low * tl.load(p_scaled_grad + o_low, mask=m_low, other=0.0)
    if LORA:
        b_scale_grad = tl.sum(b_scale_sum, axis=0).to(p_scale_grad.dtype.element_ty)
        tl.store(p_scale_grad + loop * rank + o_rank, b_scale_grad, mask=m_rank)
    if loop == 0:
        tl.store(p_halt_b_grad, tl.sum(b_bias_sum, axis=0).to(p_halt_b_grad.dtype.element_ty))


@triton.jit(do_not_specialize=["n_parts"])
def _loop_step_sums_kernel(
    p_parts, p_first, p_second, p_third, p_fourth, n_parts, n_vectors, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    vector = tl.program_id(1)
    o_d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_d = o_d < width
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_part in range(0, n_parts, ROWS):
        o_part = (i_part + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        p_part = p_parts + (o_part * n_vectors + vector) * width + o_d[None, :]
        b_sum += tl.load(p_part, mask=(o_part < n_parts) & m_d[None, :], other=0.0)
    b_total = tl.sum(b_sum, axis=0)
    if vector == 0:
        tl.store(p_first + o_d, b_total.to(p_first.dtype.element_ty), mask=m_d)
    if vector == 1:
        tl.store(p_second + o_d, b_total.to(p_second.dtype.element_ty), mask=m_d)
    if n_vectors > 2:
        if vector == 2:
            tl.store(p_third + o_d, b_total.to(p_third.dtype.element_ty), mask=m_d)
        if vector == 3:
            tl.store(p_fourth + o_d, b_total.to(p_fourth.dtype.element_ty), mask=m_d)


def parameter_sums(parts: torch.Tensor, outputs: list[torch.Tensor | None]) -> None:
    """outputs[k] = the sum over p of parts[p, k]. parts (P, K, W) float32, K outputs of W elements, 2 or 4."""
    n_parts, n_vectors, width = parts.shape
    # an output that is None must be last, and gets no program
    wanted = sum(output is not None for output in outputs)
    padded = [*outputs, *[None] * (4 - len(outputs))]
    launch(
        _loop_step_sums_kernel,
        (triton.cdiv(width, COLUMNS), wanted),
        *(parts, *(padded[0] if output is None else output for output in padded)),
        *(n_parts, n_vectors, width),
        ROWS=16,
        COLUMNS=COLUMNS,
        options={"num_warps": 4},
    )


def lora_gradients(
    block_out: torch.Tensor,
    grad: torch.Tensor,
    low: torch.Tensor,
    scaled_grad: torch.Tensor,
    params: LoopParams,
    t: int | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of lora_down and lora_b, (r, D) float32.

    grad (N, D) float32 is the gradient of the delta; low (N, r) is block_out lora_down^T, and scaled_grad (N, r) the
    gradient of low * scale.
    """
    down, scale = params.lora_down, params.lora_scale
    n_rows, width = block_out.shape
    rank, target = down.shape[0], target_of(block_out)
    chosen = config("loop_step_lora", target)
    blocks = triton.cdiv(width, chosen.constexprs["COLUMNS"])
    parts = min(triton.cdiv(n_rows, chosen.constexprs["ROWS"]), max(1, 4 * target.processors // blocks))
    partial = torch.empty((parts, 2, rank * width), dtype=torch.float32, device=down.device)
    per_row = isinstance(t, torch.Tensor)
    launch(
        _loop_step_lora_kernel,
        (blocks, parts),
        *(block_out, grad, low, scaled_grad, scale, t if per_row else None, partial),
        *(n_rows, width, rank, 0 if per_row else t, scale.shape[0] - 1, block_out.stride(0)),
        PER_ROW=per_row,
        RANK=max(triton.next_power_of_2(rank), 8),
        **chosen.constexprs,
        options=chosen.options,
    )
    d_down, d_up = (torch.empty(down.shape, dtype=torch.float32, device=down.device) for _ in range(2))
    parameter_sums(partial, [d_down, d_up])
    return d_down, d_up


def row_sums(
    low: torch.Tensor | None,
    scaled_grad: torch.Tensor | None,
    logit_grad: torch.Tensor,
    params: LoopParams,
    t: int | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of lora_scale (L, r) and halt_b (1), in their dtypes."""
    scale, halt_b = params.lora_scale, params.halt_b
    loops, rank = scale.shape
    per_row = isinstance(t, torch.Tensor)
    scale_grad = torch.empty(scale.shape, dtype=scale.dtype, device=scale.device)
    halt_b_grad = torch.empty(halt_b.shape, dtype=halt_b.dtype, device=halt_b.device)
    padded = triton.next_power_of_2(max(rank, 1))
    launch(
        _loop_step_rows_kernel,
        (loops if rank > 0 else 1,),
        *(low, scaled_grad, logit_grad, t if per_row else None, scale_grad, halt_b_grad),
        *(logit_grad.shape[0], rank, 0 if per_row else t, loops - 1),
        PER_ROW=per_row,
        LORA=rank > 0,
        RANK=padded,
        ROWS=max(TILE // padded, 16),
        options={"num_warps": 8},
    )
    return scale_grad, halt_b_grad
