"""Gradients of the loop step: h' is recomputed, every row read and written once, parameters summed in a fixed order.

If all rows have the same depth and up to WIDEST columns, one kernel reads each row 6 times and writes it 3 times, and
with LoRA also writes the gradient of the delta, which a second pass reads together with block_out for the gradients of
the LoRA matrices. Each program takes rows in turn and keeps its sums for A, B, halt_w and norm_w in registers; the
programs' sums are added afterwards. Wider rows, and rows at different depths, take two passes: one for sums over all
columns of a row, and one by programs that each own a block of columns (backward_wide.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.loop_step.backward_wide import wide_backward
from openmythos.triton_kernels.loop_step.forward import with_lora
from openmythos.triton_kernels.loop_step.gradients import lora_gradients, parameter_sums, row_sums
from openmythos.triton_kernels.loop_step.parts import (
    Gradients,
    Outputs,
    depth_of,
    embedding,
    halting_gradients,
    load_row,
    load_vector,
    loop_embedding,
    lora_inside,
    store_row,
)

if TYPE_CHECKING:
    from openmythos.ops.loop_step import LoopParams, LoopStepBackward

# Columns of a row that fit the registers beside four sums.
WIDEST = 2048
# Programs per processor, each with its own sums.
PROGRAMS = 2


@triton.jit(do_not_specialize=["n_rows", "t", "last_loop"])
def _loop_step_backward_kernel(
    p_grad_h,
    p_grad_out,
    p_grad_cum,
    p_grad_next,
    p_h,
    p_e,
    p_block,
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
    p_h_grad,
    p_e_grad,
    p_block_grad,
    p_new_grad,
    p_cum_grad,
    p_work,
    n_rows,
    rank,
    t,
    last_loop,
    threshold,
    eps,
    loop_dim,
    WIDTH: tl.constexpr,
    GRAD_H_STRIDE: tl.constexpr,
    GRAD_OUT_STRIDE: tl.constexpr,
    GRAD_NEXT_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    E_STRIDE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr,
    LORA: tl.constexpr,
    NEXT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # one workspace, since more addresses would not fit the registers: see _Workspace
    padded = (n_rows.to(tl.int64) + 15) // 16 * 16
    p_logit_grad = p_work + tl.num_programs(0).to(tl.int64) * 4 * WIDTH
    p_low = p_logit_grad + padded
    p_scaled_grad = p_low + padded * rank
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < WIDTH
    b_A_sum = tl.zeros([BLOCK], tl.float32)
    b_B_sum = tl.zeros([BLOCK], tl.float32)
    b_halt_sum = tl.zeros([BLOCK], tl.float32)
    b_norm_sum = tl.zeros([BLOCK], tl.float32)
    halt_b = tl.load(p_halt_b).to(tl.float32)
    o_scale = tl.minimum(t, last_loop) * rank
    for i_row in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        row = tl.cast(i_row, tl.int64)
        b_x = load_row(p_block + row * BLOCK_STRIDE, o_d, m_d).to(tl.float32)  # [BLOCK]
        b_new = load_row(p_h + row * H_STRIDE, o_d, m_d).to(tl.float32) * load_vector(p_A, o_d, m_d)
        b_new += load_row(p_e + row * E_STRIDE, o_d, m_d).to(tl.float32) * load_vector(p_B, o_d, m_d) + b_x
        if LORA:
            for i_r in range(rank):
                low = tl.sum(b_x * load_vector(p_down + i_r * WIDTH, o_d, m_d))
                tl.store(p_low + row * rank + i_r, low)
                b_new += low * tl.load(p_scale + o_scale + i_r) * load_vector(p_up + i_r * WIDTH, o_d, m_d)

        b_grad_out = load_row(p_grad_out + row * GRAD_OUT_STRIDE, o_d, m_d)
        logit = tl.sum(b_new * load_vector(p_halt_w, o_d, m_d)) + halt_b
        weight_grad = tl.sum(b_new * b_grad_out)
        cum, p_grad = tl.load(p_cum + row), tl.load(p_grad_cum + row)
        weight, logit_grad, cum_grad = halting_gradients(logit, cum, weight_grad, p_grad, threshold)
        tl.store(p_cum_grad + row, cum_grad)
        tl.store(p_logit_grad + row, logit_grad)

        b_grad = load_row(p_grad_h + row * GRAD_H_STRIDE, o_d, m_d).to(tl.float32)
        b_grad += weight * b_grad_out + logit_grad * load_vector(p_halt_w, o_d, m_d)
        b_halt_sum += logit_grad * b_new
        b_e_grad = tl.zeros([BLOCK], tl.float32)
        if NEXT:
            b_source = b_new + load_row(p_e + row * E_STRIDE, o_d, m_d).to(tl.float32)
            b_source += loop_embedding(t, p_embedding, o_d, loop_dim, False)
            norm = tl.rsqrt(tl.sum(b_source * b_source) / WIDTH + eps)
            b_source *= norm
            b_outer = load_row(p_grad_next + row * GRAD_NEXT_STRIDE, o_d, m_d).to(tl.float32)
            b_norm_sum += b_outer * b_source
            b_outer *= load_vector(p_norm_w, o_d, m_d)
            b_e_grad = norm * (b_outer - b_source * (tl.sum(b_outer * b_source) / WIDTH))
            b_grad += b_e_grad
        # h and e are loaded again, from the L2 cache: keeping them would not fit the registers
        b_A_sum += b_grad * load_row(p_h + row * H_STRIDE, o_d, m_d).to(tl.float32)
        b_B_sum += b_grad * load_row(p_e + row * E_STRIDE, o_d, m_d).to(tl.float32)
        store_row(p_h_grad + row * WIDTH, o_d, m_d, b_grad * load_vector(p_A, o_d, m_d))
        store_row(p_e_grad + row * WIDTH, o_d, m_d, b_e_grad + b_grad * load_vector(p_B, o_d, m_d))
        store_row(p_new_grad + row * WIDTH, o_d, m_d, b_grad)
        if LORA:
            b_block_grad = b_grad
            for i_r in range(rank):
                scaled_grad = tl.sum(b_grad * load_vector(p_up + i_r * WIDTH, o_d, m_d))
                tl.store(p_scaled_grad + row * rank + i_r, scaled_grad)
                scaled_grad *= tl.load(p_scale + o_scale + i_r)
                b_block_grad += scaled_grad * load_vector(p_down + i_r * WIDTH, o_d, m_d)
            store_row(p_block_grad + row * WIDTH, o_d, m_d, b_block_grad)
    p_part = p_work + tl.program_id(0).to(tl.int64) * 4 * WIDTH
    store_row(p_part, o_d, m_d, b_A_sum)
    store_row(p_part + WIDTH, o_d, m_d, b_B_sum)
    store_row(p_part + 2 * WIDTH, o_d, m_d, b_halt_sum)
    store_row(p_part + 3 * WIDTH, o_d, m_d, b_norm_sum)


class _Workspace(NamedTuple):
    """Views of one buffer: four sums of each program (P, 4, D), and for each row d logit (N), low and d scaled (N, r).

    low is block_out down^T, and scaled is low times the row's scale.
    """

    buffer: torch.Tensor
    parts: torch.Tensor
    logit: torch.Tensor
    low: torch.Tensor
    scaled: torch.Tensor

    @classmethod
    def empty(cls, programs: int, width: int, rows: int, rank: int, device: torch.device) -> _Workspace:
        # each view begins at a cache line, so that later kernels get aligned tensors for any N
        padded = triton.cdiv(rows, 16) * 16
        sizes = (programs * 4 * width, padded, padded * rank, padded * rank)
        buffer = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        parts, logit, low, scaled = buffer.split(sizes)
        low, scaled = (part.view(padded, rank)[:rows] for part in (low, scaled))
        return cls(buffer, parts.view(programs, 4, width), logit[:rows], low, scaled)


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    # autograd hands over expanded gradients, whose last stride is 0
    return x if x.stride(-1) == 1 else x.contiguous()


def _bytes(*rows: torch.Tensor) -> int:
    return min(part.element_size() for part in rows)


def _fused(
    grads: Gradients, call: LoopStepBackward, params: LoopParams, x: torch.Tensor, lora: bool, out: Outputs
) -> _Workspace:
    """Writes the gradients of rows into `out`; returns the parts of the parameters' gradients."""
    h, e = call.h, call.e
    (rows, width), target = h.shape, target_of(h)
    rank = params.lora_down.shape[0] if lora else 0
    chosen = config("loop_step_backward", target, width=width, bytes=_bytes(h, e, x))
    programs = min(rows, PROGRAMS * target.processors)
    work = _Workspace.empty(programs, width, rows, rank, h.device)
    table = embedding(call.loop_dim, h.device, call.t + 1)
    matrices = (params.lora_down, params.lora_scale, params.lora_b) if lora else (None, None, None)
    heads = (params.halt_w, params.halt_b, params.norm_w)
    settings = (call.t, params.lora_scale.shape[0] - 1, call.threshold, call.eps, call.loop_dim)
    launch(
        _loop_step_backward_kernel,
        (programs,),
        *(*grads, h, e, x, call.cum_p.contiguous(), params.A, params.B, *matrices, *heads, table),
        *(*out, work.buffer, rows, rank, *settings),
        WIDTH=width,
        GRAD_H_STRIDE=grads.h.stride(0),
        GRAD_OUT_STRIDE=grads.h_out.stride(0),
        GRAD_NEXT_STRIDE=0 if grads.x_next is None else grads.x_next.stride(0),
        H_STRIDE=h.stride(0),
        E_STRIDE=e.stride(0),
        BLOCK_STRIDE=x.stride(0),
        LORA=lora,
        NEXT=params.norm_w is not None,
        BLOCK=triton.next_power_of_2(width),
        **chosen.constexprs,
        options=chosen.options,
    )
    return work


def loop_step_backward(call: LoopStepBackward) -> tuple[torch.Tensor, ...]:
    """Gradients for h, e, block_out, cum_p and the parameters, in their dtypes; norm_w's is empty if it is None."""
    params, h, block_out, t = call.params.contiguous(), call.h, call.block_out, depth_of(call)
    rows, width = h.shape
    rank, last = params.lora_down.shape[0], params.norm_w is None
    grads = Gradients(
        h=_contiguous(call.grad_h),
        h_out=_contiguous(call.grad_out),
        cum_p=call.grad_p.contiguous(),
        x_next=None if last else _contiguous(call.grad_next),
    )

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=h.device)

    widest = WIDEST if call.t_rows is None else 0
    inside = rank > 0 and lora_inside(rows, width, rank, widest)
    out = Outputs(
        h=empty(rows, width, dtype=h.dtype),
        e=empty(rows, width, dtype=call.e.dtype),
        block=empty(rows, width, dtype=block_out.dtype) if inside else None,
        new=empty(rows, width, dtype=block_out.dtype if rank == 0 else torch.float32),
        cum=empty(rows),
    )
    x = block_out
    if rank > 0 and not inside:
        x, low, row_scale = with_lora(block_out, params, t)
    if width > widest:
        parts, logit = wide_backward(grads, call, params, x, out)
    else:
        work = _fused(grads, call, params, x, inside, out)
        parts, logit = work.parts, work.logit
    vectors = params._replace(lora_down=None, lora_scale=None, lora_b=None, halt_b=None)
    found = vectors._replace(**{name: torch.empty_like(v) for name, v in vectors._asdict().items() if v is not None})
    parameter_sums(parts, [found.A, found.B, found.halt_w, found.norm_w])

    if rank == 0:
        block, low, scaled = out.new, None, None
        lora_down, lora_b = torch.empty_like(params.lora_down), torch.empty_like(params.lora_b)
    elif inside:
        block, low, scaled = out.block, work.low, work.scaled
        lora_down, lora_b = lora_gradients(block_out, out.new, low, scaled, params, t)
    else:
        scaled = torch.mm(out.new, params.lora_b.float().T)
        low_grad = scaled * row_scale
        block = torch.addmm(out.new, low_grad, params.lora_down.float()).to(block_out.dtype)
        lora_down, lora_b = torch.mm(low_grad.T, block_out.float()), torch.mm((low * row_scale).T, out.new)
    lora_scale, halt_b = row_sums(low, scaled, logit, params, t)
    found = found._replace(
        lora_down=lora_down.to(params.lora_down.dtype),
        lora_scale=lora_scale,
        lora_b=lora_b.to(params.lora_b.dtype),
        halt_b=halt_b,
        norm_w=empty(0) if last else found.norm_w,
    )
    return out.h, out.e, block, out.cum, *found
