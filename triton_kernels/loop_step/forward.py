"""The step between two runs of the block, in one launch: 4 reads and 3 writes of a row, each in its own dtype.

In bfloat16 (float32 state) that is 18 bytes per element, in float32 28. The parameters add reads from the caches: 16
bytes per column for A, B, halt_w and norm_w, and 8 r for the LoRA matrices of rank r, once per tile of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.loop_step.parts import (
    depth_of,
    embedding,
    frequencies,
    halting,
    load_depths,
    load_rows,
    load_vector,
    loop_embedding,
    lora_inside,
    scale_rows,
    store_rows,
    update,
)

if TYPE_CHECKING:
    from openmythos.ops.loop_step import LoopParams, LoopStep, LoopStepInPlace

# Columns of a row that fit the registers; wider rows are read twice, the second time from the L2 cache.
WIDEST = 8192


@triton.jit(do_not_specialize=["n_rows", "t", "last_loop"])
def _loop_step_kernel(
    p_h,
    p_e,
    p_block,
    p_h_out,
    p_cum,
    p_A,
    p_B,
    p_down,
    p_scale,
    p_up,
    p_halt_w,
    p_halt_b,
    p_norm_w,
    p_embedding,
    p_t,
    p_new_h,
    p_new_out,
    p_new_cum,
    p_next,
    n_rows,
    width,
    rank,
    t,
    last_loop,
    threshold,
    eps,
    loop_dim,
    h_stride,
    e_stride,
    block_stride,
    out_stride,
    new_h_stride,
    new_out_stride,
    next_stride,
    PER_ROW: tl.constexpr,
    LORA: tl.constexpr,
    NEXT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    m_row = o_row < n_rows
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < width
    mask = m_row & m_d[None, :]
    b_t = load_depths(p_t, o_row, m_row, t, PER_ROW)
    b_cum = tl.load(p_cum + o_row, mask=m_row, other=0.0)
    b_x = load_rows(p_block, o_row, block_stride, o_d, mask).to(tl.float32)  # [ROWS, BLOCK]
    b_e = load_rows(p_e, o_row, e_stride, o_d, mask)
    b_new = load_rows(p_h, o_row, h_stride, o_d, mask).to(tl.float32) * load_vector(p_A, o_d, m_d)
    b_new += b_e.to(tl.float32) * load_vector(p_B, o_d, m_d) + b_x
    if LORA:
        o_scale = tl.minimum(b_t, last_loop) * rank
        for i_r in range(rank):
            b_low = tl.sum(b_x * load_vector(p_down + i_r * width, o_d, m_d), axis=1, keep_dims=True)
            b_low *= tl.load(p_scale + o_scale + i_r).to(tl.float32)
            b_new += b_low * load_vector(p_up + i_r * width, o_d, m_d)

    b_logit = tl.sum(b_new * load_vector(p_halt_w, o_d, m_d), axis=1, keep_dims=True)
    b_out = load_rows(p_h_out, o_row, out_stride, o_d, mask)
    _p, b_weight, b_total = halting(b_logit + tl.load(p_halt_b).to(tl.float32), b_cum, threshold)
    # in place, a warp must not store what another one has yet to load
    tl.debug_barrier()
    tl.store(p_new_cum + o_row, b_total, mask=m_row)
    store_rows(p_new_out, o_row, new_out_stride, o_d, mask, b_out + b_weight * b_new)
    store_rows(p_new_h, o_row, new_h_stride, o_d, mask, b_new)
    if NEXT:
        b_new += b_e.to(tl.float32) + loop_embedding(b_t + 1, p_embedding, o_d, loop_dim, PER_ROW)
        b_norm = tl.rsqrt(tl.sum(b_new * b_new, axis=1, keep_dims=True) / width + eps)
        store_rows(p_next, o_row, next_stride, o_d, mask, b_new * b_norm * load_vector(p_norm_w, o_d, m_d))


@triton.jit(do_not_specialize=["n_rows", "t"])
def _loop_step_wide_kernel(
    p_h,
    p_e,
    p_block,
    p_h_out,
    p_cum,
    p_A,
    p_B,
    p_halt_w,
    p_halt_b,
    p_norm_w,
    p_embedding,
    p_t,
    p_new_h,
    p_new_out,
    p_new_cum,
    p_next,
    n_rows,
    width,
    t,
    threshold,
    eps,
    loop_dim,
    h_stride,
    e_stride,
    block_stride,
    out_stride,
    new_h_stride,
    new_out_stride,
    next_stride,
    PER_ROW: tl.constexpr,
    NEXT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # one pass computes both sums over a row; the second one reads block_out, h and e from the L2 cache
    o_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    m_row = o_row < n_rows
    b_t = load_depths(p_t, o_row, m_row, t, PER_ROW)
    b_cum = tl.load(p_cum + o_row, mask=m_row, other=0.0)
    b_logits = tl.zeros([ROWS, BLOCK], tl.float32)
    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i_d in range(0, width, BLOCK):
        o_d = i_d + tl.arange(0, BLOCK)
        m_d = o_d < width
        mask = m_row & m_d[None, :]
        b_new, _h, b_e = update(p_h, p_e, p_block, p_A, p_B, o_row, h_stride, e_stride, block_stride, o_d, m_d, mask)
        b_logits += b_new * load_vector(p_halt_w, o_d, m_d)
        if NEXT:
            b_source = b_new + b_e + loop_embedding(b_t + 1, p_embedding, o_d, loop_dim, PER_ROW)
            b_squares += b_source * b_source
    b_logit = tl.sum(b_logits, axis=1, keep_dims=True) + tl.load(p_halt_b).to(tl.float32)
    b_norm = tl.rsqrt(tl.sum(b_squares, axis=1, keep_dims=True) / width + eps)
    _p, b_weight, b_total = halting(b_logit, b_cum, threshold)
    # in place, a warp must not store what another one has yet to load
    tl.debug_barrier()
    tl.store(p_new_cum + o_row, b_total, mask=m_row)
    for i_d in range(0, width, BLOCK):
        o_d = i_d + tl.arange(0, BLOCK)
        m_d = o_d < width
        mask = m_row & m_d[None, :]
        b_new, _h, b_e = update(p_h, p_e, p_block, p_A, p_B, o_row, h_stride, e_stride, block_stride, o_d, m_d, mask)
        b_out = load_rows(p_h_out, o_row, out_stride, o_d, mask)
        tl.debug_barrier()
        store_rows(p_new_out, o_row, new_out_stride, o_d, mask, b_out + b_weight * b_new)
        store_rows(p_new_h, o_row, new_h_stride, o_d, mask, b_new)
        if NEXT:
            b_source = b_new + b_e + loop_embedding(b_t + 1, p_embedding, o_d, loop_dim, PER_ROW)
            store_rows(p_next, o_row, next_stride, o_d, mask, b_source * b_norm * load_vector(p_norm_w, o_d, m_d))


def with_lora(
    block_out: torch.Tensor, params: LoopParams, t: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x = block_out + (low * scale) lora_b with low = block_out lora_down^T, by two float32 products; low; scale."""
    x, scale = block_out.float(), scale_rows(params.lora_scale.float(), t)
    low = torch.mm(x, params.lora_down.float().T)
    return torch.addmm(x, low * scale, params.lora_b.float()), low, scale


class _Outputs(NamedTuple):
    h: torch.Tensor
    h_out: torch.Tensor
    cum_p: torch.Tensor
    x_next: torch.Tensor | None


def _step(call: LoopStep | LoopStepInPlace, out: _Outputs) -> None:
    params, block_out, t = call.params.contiguous(), call.block_out, depth_of(call)
    rows, width = call.h.shape
    rank = params.lora_down.shape[0]
    lora = rank > 0 and lora_inside(rows, width, rank, WIDEST)
    if rank > 0 and not lora and rows > 0:
        block_out, _, _ = with_lora(block_out, params, t)
    per_row = call.t_rows is not None
    table = frequencies(call.loop_dim, call.h.device) if per_row else embedding(call.loop_dim, call.h.device, t + 1)
    strides = [part.stride(0) for part in (call.h, call.e, block_out, call.h_out, out.h, out.h_out)]
    strides.append(0 if out.x_next is None else out.x_next.stride(0))
    state = (call.h, call.e, block_out, call.h_out, call.cum_p.contiguous(), params.A, params.B)
    heads = (params.halt_w, params.halt_b, params.norm_w)
    outputs = (table, t if per_row else None, *out)
    settings = (call.threshold, call.eps, call.loop_dim, *strides)
    constexprs = {"PER_ROW": per_row, "NEXT": out.x_next is not None}
    if width > WIDEST:
        chosen = config("loop_step_wide", target_of(call.h))
        grid = (triton.cdiv(rows, chosen.constexprs["ROWS"]),)
        constexprs |= chosen.constexprs
        args = (*state, *heads, *outputs, rows, width, call.t, *settings)
        launch(_loop_step_wide_kernel, grid, *args, **constexprs, options=chosen.options)
        return
    chosen = config("loop_step", target_of(call.h), width=width, rows=rows)
    grid = (triton.cdiv(rows, chosen.constexprs["ROWS"]),)
    constexprs |= {"LORA": lora, "BLOCK": triton.next_power_of_2(width), **chosen.constexprs}
    matrices = (params.lora_down, params.lora_scale, params.lora_b) if lora else (None, None, None)
    sizes = (rows, width, rank if lora else 0, call.t, params.lora_scale.shape[0] - 1)
    args = (*state, *matrices, *heads, *outputs, *sizes, *settings)
    launch(_loop_step_kernel, grid, *args, **constexprs, options=chosen.options)


def loop_step(call: LoopStep) -> tuple[torch.Tensor, ...]:
    """The new h, h_out and cum_p and the next block input, which is empty without norm_w."""
    h, e = call.h, call.e
    new_h = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    new_h_out = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    new_cum_p = torch.empty(call.cum_p.shape, dtype=torch.float32, device=h.device)
    last = call.norm_w is None
    x_next = torch.empty((0,) if last else h.shape, dtype=e.dtype, device=h.device)
    _step(call, _Outputs(new_h, new_h_out, new_cum_p, None if last else x_next))
    return new_h, new_h_out, new_cum_p, x_next


def loop_step_(call: LoopStepInPlace) -> None:
    """`loop_step` in place: h, h_out, cum_p (contiguous) and x_next, which may be block_out itself."""
    _step(call, _Outputs(call.h, call.h_out, call.cum_p, call.x_next))
