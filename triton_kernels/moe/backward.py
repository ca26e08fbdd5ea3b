"""Gradients of moe_experts; the experts' outputs are never formed (SonicMoE, arXiv 2512.14080).

With G = gate x, U = up x, A = silu(G) * U and out = sum_j w down A, a slot's gradients come from dA' = down^T d_out:
dw = <dA', A>, dA = w dA', and dH = (dG, dU) by the SwiGLU's derivative. Then d_down = sum d_out (w A)^T,
d_gate_up = sum dH x^T and d_x = gate_up^T dH.

One product each for dA', d_down, d_gate_up (two widths) and d_x: 12 N D I k FLOPs. Gate and up were either kept by the
forward, 4 N k I bytes, or are recomputed, 4 N D I k FLOPs more. Every output has one writer: dw adds one partial sum
per column tile, d_x is gathered from packed rows, and an expert without rows gets zeros from its own programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch
from openmythos.triton_kernels.moe.gather_sum import gather_sum
from openmythos.triton_kernels.moe.grouped import down_product, gate_up, programs, tile_config
from openmythos.triton_kernels.moe.sort import Sorted, sort_by_expert
from openmythos.triton_kernels.moe.tiles import multiplied, scheduled

if TYPE_CHECKING:
    from openmythos.ops.moe import MoeExpertsBackward


@triton.jit
def _through_swiglu(b_grad, b_weight, p_hidden, p_grad_hidden, p_scaled, o_hidden, o_out, o_n, m_out, width):
    """Stores w A and dH of units o_n; returns their part of <dA', A>. A unit past the end counts as zero."""
    b_gate = tl.load(p_hidden + o_hidden + o_n[None, :], mask=m_out, other=0.0).to(tl.float32)
    b_up = tl.load(p_hidden + o_hidden + width + o_n[None, :], mask=m_out, other=0.0).to(tl.float32)
    b_sigmoid = tl.sigmoid(b_gate)
    b_silu = b_gate * b_sigmoid
    b_act = b_silu * b_up
    tl.store(p_scaled + o_out + o_n[None, :], (b_weight * b_act).to(p_scaled.dtype.element_ty), mask=m_out)
    b_dot = tl.sum(b_grad * b_act, axis=1)
    b_grad *= b_weight
    p_dh = p_grad_hidden + 2 * o_out + o_n[None, :]
    b_grad_gate = b_grad * b_up * (b_sigmoid + b_silu * (1 - b_sigmoid))
    tl.store(p_dh, b_grad_gate.to(p_grad_hidden.dtype.element_ty), mask=m_out)
    tl.store(p_dh + width, (b_grad * b_silu).to(p_grad_hidden.dtype.element_ty), mask=m_out)
    return b_dot


@triton.jit(do_not_specialize=["slots", "tiles"])
def _moe_hidden_grad_kernel(
    p_grad,
    p_down,
    p_hidden,
    p_weights,
    p_slots,
    p_rows,
    p_tiles,
    p_grad_hidden,
    p_scaled,
    p_partial,
    slots,
    tiles,
    depth,
    width,
    k,
    grad_stride,
    expert_stride,
    row_stride,
    weights_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """dA' = d_out down, and from it dH, w A and this column tile's part of dw."""
    _, i_tile, i_column = scheduled(0, tiles, tl.cdiv(width, BLOCK_N), GROUP, False)
    if i_tile < 0:
        return
    i_expert = tl.load(p_tiles + i_tile)
    if i_expert < 0:
        return
    o_m = tl.load(p_tiles + tiles + i_tile) + tl.arange(0, BLOCK_M)
    i_end = tl.load(p_tiles + 2 * tiles + i_tile)
    m_m = o_m < i_end
    o_position = tl.minimum(o_m, i_end - 1)
    o_n = i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    o_unit = o_n if EVEN_N else tl.minimum(o_n, width - 1)
    p_a = p_grad + tl.load(p_rows + o_position).to(tl.int64)[:, None] * grad_stride + o_k[None, :]
    p_b = p_down + i_expert.to(tl.int64) * expert_stride + o_k.to(tl.int64)[:, None] * row_stride + o_unit[None, :]
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_acc = multiplied(b_acc, p_a, p_b, depth, row_stride, BLOCK_K, EVEN_K)

    b_slot = tl.load(p_slots + o_position)
    b_weight = tl.load(p_weights + (b_slot // k).to(tl.int64) * weights_stride + b_slot % k).to(tl.float32)[:, None]
    o_h = b_slot.to(tl.int64)[:, None] * (2 * width)
    o_out = o_m.to(tl.int64)[:, None] * width
    b_dot = tl.zeros([BLOCK_M], tl.float32)
    if HALVES:
        b_left, b_right = tl.split(b_acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1))
        for half in tl.static_range(2):
            b_part = b_left if half == 0 else b_right
            o_part = i_column * BLOCK_N + half * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            m_part = m_m[:, None] & (o_part < width)[None, :]
            b_dot += _through_swiglu(
                b_part, b_weight, p_hidden, p_grad_hidden, p_scaled, o_h, o_out, o_part, m_part, width
            )
    else:
        m_out = m_m[:, None] & (o_n < width)[None, :]
        b_dot = _through_swiglu(b_acc, b_weight, p_hidden, p_grad_hidden, p_scaled, o_h, o_out, o_n, m_out, width)
    tl.store(p_partial + i_column.to(tl.int64) * slots + o_m, b_dot, mask=m_m)


@triton.jit
def _moe_weight_grad_kernel(
    p_left,
    p_right,
    p_rows,
    p_offsets,
    p_out,
    left_columns,
    right_columns,
    left_stride,
    right_stride,
    GATHER_LEFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """out[e] = left^T right over the positions of expert e; one side is gathered by row, the other is packed."""
    i_expert = tl.program_id(1).to(tl.int64)
    _, i_left, i_right = scheduled(0, tl.cdiv(left_columns, BLOCK_M), tl.cdiv(right_columns, BLOCK_N), GROUP, False)
    if i_left < 0:
        return
    i_start = tl.load(p_offsets + i_expert)
    i_end = tl.load(p_offsets + i_expert + 1)
    o_m = i_left * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_right * BLOCK_N + tl.arange(0, BLOCK_N)
    o_left = o_m if EVEN_M else tl.minimum(o_m, left_columns - 1)
    o_right = o_n if EVEN_N else tl.minimum(o_n, right_columns - 1)
    o_k = tl.arange(0, BLOCK_K)
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_k in range(i_start, i_end, BLOCK_K):
        o_position = i_k + o_k
        m_k = o_position < i_end
        b_row = tl.load(p_rows + o_position, mask=m_k, other=0)
        o_l = (b_row if GATHER_LEFT else o_position).to(tl.int64)[:, None] * left_stride
        o_r = (o_position if GATHER_LEFT else b_row).to(tl.int64)[:, None] * right_stride
        b_left = tl.load(p_left + o_l + o_left[None, :], mask=m_k[:, None], other=0.0)  # [BLOCK_K, BLOCK_M]
        b_right = tl.load(p_right + o_r + o_right[None, :], mask=m_k[:, None], other=0.0)  # [BLOCK_K, BLOCK_N]
        b_acc = tl.dot(tl.trans(b_left), b_right, b_acc, input_precision="ieee")
    p_out += i_expert * left_columns * right_columns + o_m.to(tl.int64)[:, None] * right_columns + o_n[None, :]
    m_out = (o_m < left_columns)[:, None] & (o_n < right_columns)[None, :]
    tl.store(p_out, b_acc.to(p_out.dtype.element_ty), mask=m_out)


def _hidden_grad(
    grad: torch.Tensor,
    down: torch.Tensor,
    hidden: torch.Tensor,
    weights: torch.Tensor,
    found: Sorted,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dH (N k, 2 I), w A (N k, I), partial sums of dw (column tiles, N k)), packed."""
    _, depth, width = down.shape
    slots, k = found.slots.numel(), weights.shape[1]
    target, key, block_m = tile_config(grad, slots, down)
    chosen = config("moe_hidden_grad", target, **key)
    block_n, block_k, group = (chosen.constexprs[name] for name in ("BLOCK_N", "BLOCK_K", "GROUP"))
    columns, tiles = triton.cdiv(width, block_n), found.tiles.shape[1]
    grad_hidden, scaled = grad.new_empty((slots, 2 * width)), grad.new_empty((slots, width))
    partial = torch.empty((columns, slots), dtype=torch.float32, device=grad.device)
    launch(
        _moe_hidden_grad_kernel,
        (programs(tiles, 0, columns, group),),
        *(grad, down, hidden, weights, found.slots, found.rows, found.tiles, grad_hidden, scaled, partial, slots),
        *(tiles, depth, width, k, grad.stride(0), down.stride(0), down.stride(1), weights.stride(0)),
        options=chosen.options,
        BLOCK_M=block_m,
        EVEN_K=depth % block_k == 0,
        EVEN_N=width % block_n == 0,
        **chosen.constexprs,
    )
    return grad_hidden, scaled, partial


def _weight_grad(
    left: torch.Tensor, right: torch.Tensor, found: Sorted, out: torch.Tensor, *, gather_left: bool
) -> None:
    """out (E, left's columns, right's columns) = left^T right over each expert's positions."""
    target, key, _ = tile_config(left, found.slots.numel(), out)
    chosen = config("moe_weight_grad", target, bits=key["bits"], odd=key["odd"])
    block_m, block_n, group = (chosen.constexprs[name] for name in ("BLOCK_M", "BLOCK_N", "GROUP"))
    left_columns, right_columns = left.shape[1], right.shape[1]
    tiles, columns = triton.cdiv(left_columns, block_m), triton.cdiv(right_columns, block_n)
    launch(
        _moe_weight_grad_kernel,
        (programs(tiles, 0, columns, group), out.shape[0]),
        *(left, right, found.rows, found.offsets, out, left_columns, right_columns, left.stride(0), right.stride(0)),
        options=chosen.options,
        GATHER_LEFT=gather_left,
        EVEN_M=left_columns % block_m == 0,
        EVEN_N=right_columns % block_n == 0,
        **chosen.constexprs,
    )


def moe_experts_backward(call: MoeExpertsBackward) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weights, gate_up and down; gate x and up x are `hidden`, or recomputed if it is None."""
    grad, x, ids, weights, hidden = call.grad, call.x, call.ids, call.weights, call.hidden
    gate_up_weights, down = call.experts.gate_up, call.experts.down
    rows, columns = x.shape
    slots, k = ids.numel(), ids.shape[1]
    experts, _, width = down.shape
    grad_weights = torch.empty((rows, k), dtype=weights.dtype, device=x.device)
    if rows == 0:
        return (
            x.new_empty(x.shape),
            grad_weights,
            gate_up_weights.new_zeros(gate_up_weights.shape),
            down.new_zeros(down.shape),
        )
    # An expanded gradient from autograd has a last stride of 0.
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    _, _, block_m = tile_config(x, slots, gate_up_weights)
    found = sort_by_expert(ids, experts, block_m)
    if hidden is None:
        hidden = x.new_empty((slots, 2 * width))
        gate_up(x, gate_up_weights, found, act=None, hidden=hidden)
    grad_hidden, scaled, partial = _hidden_grad(grad, down, hidden, weights, found)

    grad_down, grad_gate_up = x.new_empty(down.shape), x.new_empty(gate_up_weights.shape)
    _weight_grad(grad, scaled, found, grad_down, gather_left=True)
    _weight_grad(grad_hidden, x, found, grad_gate_up.flatten(1, 2), gather_left=False)
    packed = x.new_empty((slots, columns))
    down_product("moe_input_grad", grad_hidden, gate_up_weights, found, packed)
    grad_x = x.new_empty(x.shape)
    gather_sum(packed, found, grad_x, k=k, partial=partial, grad_weights=grad_weights)
    return grad_x, grad_weights, grad_gate_up, grad_down
