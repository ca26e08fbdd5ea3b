"""moe_experts for many rows: two grouped GEMMs over tiles of one expert's rows, then a gather and sum.

gate/up gathers rows of x in its loads and applies SwiGLU to its two accumulators; down writes each slot's output
packed; the sum reads a row's k outputs in slot order, so nothing is scattered and nothing depends on timing. A shared
expert is a group of all rows whose tiles run in the same launches.

Counting, 16-bit: gate/up reads 2 k N D (gathered, mostly from cache) and writes 2 k N I bytes, down reads 2 k N I and
writes 2 k N D, the sum reads that again; weights are read once for GROUP row tiles. FLOPs 6 N D I k (1 + S).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import Target, launch, target_of
from openmythos.triton_kernels.moe.gather_sum import gather_sum
from openmythos.triton_kernels.moe.sort import Sorted, sort_by_expert
from openmythos.triton_kernels.moe.tiles import multiplied, picked, scheduled, shared_chunk, swiglu

if TYPE_CHECKING:
    from openmythos.ops.moe import MoeExperts

Shared = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@triton.jit
def _gate_up_product(
    p_x,
    p_gate,
    p_up,
    b_row,
    o_n,
    units,
    depth,
    x_stride,
    gate_stride,
    up_stride,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """x[b_row] times units o_n of gate and of up; a unit past the end repeats the last one."""
    o_k = tl.arange(0, BLOCK_K)
    o_unit = (o_n if EVEN_N else tl.minimum(o_n, units - 1)).to(tl.int64)[None, :]
    p_a = p_x + b_row.to(tl.int64)[:, None] * x_stride + o_k[None, :]  # [BLOCK_M, BLOCK_K]
    p_g = p_gate + o_unit * gate_stride + o_k[:, None]  # [BLOCK_K, BLOCK_N]
    p_u = p_up + o_unit * up_stride + o_k[:, None]
    b_gate = tl.zeros([b_row.shape[0], o_n.shape[0]], tl.float32)
    b_up = tl.zeros([b_row.shape[0], o_n.shape[0]], tl.float32)
    for i_k in range(0, depth, BLOCK_K):
        if EVEN_K:
            b_x = tl.load(p_a)
            b_wg = tl.load(p_g)
            b_wu = tl.load(p_u)
        else:
            m_k = o_k < depth - i_k
            b_x = tl.load(p_a, mask=m_k[None, :], other=0.0)
            b_wg = tl.load(p_g, mask=m_k[:, None], other=0.0)
            b_wu = tl.load(p_u, mask=m_k[:, None], other=0.0)
        b_gate = tl.dot(b_x, b_wg, b_gate, input_precision="ieee")
        b_up = tl.dot(b_x, b_wu, b_up, input_precision="ieee")
        p_a += BLOCK_K
        p_g += BLOCK_K
        p_u += BLOCK_K
    return b_gate, b_up


@triton.jit(do_not_specialize=["rows", "tiles", "chunks"])
def _moe_gate_up_kernel(
    p_x,
    p_gate_up,
    p_slots,
    p_rows,
    p_tiles,
    p_hidden,
    p_act,
    p_act_shared,
    p_gates,
    p_ups,
    gate_strides,
    up_strides,
    widths,
    rows,
    tiles,
    chunks,
    depth,
    width,
    x_stride,
    expert_stride,
    up_offset,
    weight_stride,
    shared_width,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    row_tiles = tl.cdiv(rows, BLOCK_M)
    is_dense, i_tile, i_column = scheduled(chunks * row_tiles, tiles, tl.cdiv(width, BLOCK_N), GROUP, True)
    if i_tile < 0:
        return
    o_n = i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    # one body for each kind, since not every compiler supports a pointer that is one of two tensors
    if is_dense:
        if SHARED:
            i_expert, i_unit, units, i_hidden = shared_chunk(i_tile // row_tiles, widths, width)
            gate_stride = picked(gate_strides, i_expert)
            up_stride = picked(up_strides, i_expert)
            p_gate = picked(p_gates, i_expert) + tl.cast(i_unit, tl.int64) * gate_stride
            p_up = picked(p_ups, i_expert) + tl.cast(i_unit, tl.int64) * up_stride
            o_m = (i_tile % row_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
            b_gate, b_up = _gate_up_product(
                p_x,
                p_gate,
                p_up,
                tl.minimum(o_m, rows - 1),
                o_n,
                units,
                depth,
                x_stride,
                gate_stride,
                up_stride,
                BLOCK_K,
                EVEN_K,
                EVEN_N,
            )
            m_out = (o_m < rows)[:, None] & (o_n < tl.minimum(units, width))[None, :]
            p_out = p_act_shared + o_m.to(tl.int64)[:, None] * shared_width + (i_hidden + o_n)[None, :]
            tl.store(p_out, swiglu(b_gate, b_up).to(p_act_shared.dtype.element_ty), mask=m_out)
    else:
        i_expert = tl.load(p_tiles + i_tile)
        if i_expert >= 0:
            o_m = tl.load(p_tiles + tiles + i_tile) + tl.arange(0, BLOCK_M)
            i_end = tl.load(p_tiles + 2 * tiles + i_tile)
            p_gate = p_gate_up + i_expert.to(tl.int64) * expert_stride
            b_row = tl.load(p_rows + tl.minimum(o_m, i_end - 1))
            b_gate, b_up = _gate_up_product(
                p_x,
                p_gate,
                p_gate + up_offset,
                b_row,
                o_n,
                width,
                depth,
                x_stride,
                weight_stride,
                weight_stride,
                BLOCK_K,
                EVEN_K,
                EVEN_N,
            )
            m_out = (o_m < i_end)[:, None] & (o_n < width)[None, :]
            if p_hidden is not None:
                o_slot = tl.load(p_slots + o_m, mask=o_m < i_end, other=0).to(tl.int64) * (2 * width)
                p_h = p_hidden + o_slot[:, None] + o_n[None, :]
                tl.store(p_h, b_gate.to(p_hidden.dtype.element_ty), mask=m_out)
                tl.store(p_h + width, b_up.to(p_hidden.dtype.element_ty), mask=m_out)
            if p_act is not None:
                p_out = p_act + o_m.to(tl.int64)[:, None] * width + o_n[None, :]
                tl.store(p_out, swiglu(b_gate, b_up).to(p_act.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["dense_rows", "tiles"])
def _moe_down_kernel(
    p_act,
    p_act_shared,
    p_down,
    p_tiles,
    p_out,
    p_out_shared,
    p_downs,
    down_strides,
    widths,
    dense_rows,
    tiles,
    columns,
    depth,
    act_stride,
    expert_stride,
    part_offset,
    n_stride,
    k_stride,
    shared_width,
    PARTS: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """Packed rows times their expert's matrix, PARTS of it along the depth; for shared experts, the sum over them."""
    is_dense, i_tile, i_column = scheduled(
        tl.cdiv(dense_rows, BLOCK_M), tiles, tl.cdiv(columns, BLOCK_N), GROUP, False
    )
    if i_tile < 0:
        return
    o_n = i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    o_column = (o_n if EVEN_N else tl.minimum(o_n, columns - 1)).to(tl.int64)[None, :]
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if is_dense:
        if SHARED:
            o_m = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
            p_row = p_act_shared + tl.minimum(o_m, dense_rows - 1).to(tl.int64)[:, None] * shared_width + o_k[None, :]
            for s in range(0, SHARED):
                width = picked(widths, s)
                p_b = picked(p_downs, s) + o_column * picked(down_strides, s) + o_k[:, None]
                b_acc = multiplied(b_acc, p_row, p_b, width, 1, BLOCK_K, EVEN_K)
                p_row += width
            m_out = (o_m < dense_rows)[:, None] & (o_n < columns)[None, :]
            p_y = p_out_shared + o_m.to(tl.int64)[:, None] * columns + o_n[None, :]
            tl.store(p_y, b_acc.to(p_out_shared.dtype.element_ty), mask=m_out)
    else:
        i_expert = tl.load(p_tiles + i_tile)
        if i_expert >= 0:
            o_m = tl.load(p_tiles + tiles + i_tile) + tl.arange(0, BLOCK_M)
            i_end = tl.load(p_tiles + 2 * tiles + i_tile)
            p_row = p_act + tl.minimum(o_m, i_end - 1).to(tl.int64)[:, None] * act_stride + o_k[None, :]
            p_w = p_down + i_expert.to(tl.int64) * expert_stride
            for part in range(0, PARTS):
                p_b = p_w + part * part_offset + o_column * n_stride + o_k.to(tl.int64)[:, None] * k_stride
                b_acc = multiplied(b_acc, p_row + part * depth, p_b, depth, k_stride, BLOCK_K, EVEN_K)
            m_out = (o_m < i_end)[:, None] & (o_n < columns)[None, :]
            p_y = p_out + o_m.to(tl.int64)[:, None] * columns + o_n[None, :]
            tl.store(p_y, b_acc.to(p_out.dtype.element_ty), mask=m_out)


def tile_config(x: torch.Tensor, slots: int, weights: torch.Tensor) -> tuple[Target, dict[str, int], int]:
    """(target, the sizes that choose a config, rows per tile) for `slots` slots of the experts with these weights.

    Rows are odd if they are not whole vectors of 16 elements: loads are then narrow and need one address each.
    """
    target = target_of(x)
    bits = 8 * x.element_size()
    rows = triton.cdiv(slots, weights.shape[0])
    block_m = config("moe_tiles", target, bits=bits, rows=rows).constexprs["BLOCK_M"]
    odd = int(any(size % 16 for size in weights.shape[-2:]))
    return target, {"bits": bits, "block_m": block_m, "odd": odd}, block_m


def programs(tiles: int, dense: int, columns: int, group: int) -> int:
    """The number of programs of a GEMM over these tiles of routed and of shared experts, both in whole groups."""
    return (triton.cdiv(tiles, group) + triton.cdiv(dense, group)) * group * columns


def gate_up(
    x: torch.Tensor,
    weights: torch.Tensor,
    found: Sorted,
    *,
    act: torch.Tensor | None,
    hidden: torch.Tensor | None,
    shared: Shared = (),
    act_shared: torch.Tensor | None = None,
) -> None:
    """SwiGLU of every slot's row into act (N k, I), packed; gate x and up x into hidden (N, k, 2, I).

    The SwiGLU of the shared experts goes into act_shared (N, their widths side by side).
    """
    rows, depth = x.shape
    width = weights.shape[2]
    target, key, block_m = tile_config(x, found.slots.numel(), weights)
    chosen = config("moe_gate_up", target, **key)
    block_n, block_k, group = (chosen.constexprs[name] for name in ("BLOCK_N", "BLOCK_K", "GROUP"))
    widths = tuple(gate.shape[0] for gate, _, _ in shared)
    chunks = sum(triton.cdiv(part, width) for part in widths)
    tiles = found.tiles.shape[1]
    launch(
        _moe_gate_up_kernel,
        (programs(tiles, chunks * triton.cdiv(rows, block_m), triton.cdiv(width, block_n), group),),
        *(x, weights, found.slots, found.rows, found.tiles, hidden, act, act_shared),
        *(tuple(gate for gate, _, _ in shared), tuple(up for _, up, _ in shared)),
        *(tuple(gate.stride(0) for gate, _, _ in shared), tuple(up.stride(0) for _, up, _ in shared), widths, rows),
        *(tiles, chunks, depth, width, x.stride(0), weights.stride(0), weights.stride(1), weights.stride(2)),
        *(sum(widths),),
        options=chosen.options,
        SHARED=len(shared),
        BLOCK_M=block_m,
        EVEN_K=depth % block_k == 0,
        EVEN_N=all(part % block_n == 0 for part in (width, *widths)),
        **chosen.constexprs,
    )


def down_product(
    kernel_config: str,
    act: torch.Tensor,
    weights: torch.Tensor,
    found: Sorted,
    out: torch.Tensor,
    *,
    shared: Shared = (),
    act_shared: torch.Tensor | None = None,
    out_shared: torch.Tensor | None = None,
) -> None:
    """out[p] = sum over parts of act[p, part] @ weights[expert of p, part]: weights (E, parts, depth, columns)."""
    _, parts, depth, columns = weights.shape
    target, key, block_m = tile_config(act, found.slots.numel(), weights)
    chosen = config(kernel_config, target, **key)
    block_n, block_k, group = (chosen.constexprs[name] for name in ("BLOCK_N", "BLOCK_K", "GROUP"))
    widths = tuple(down.shape[1] for _, _, down in shared)
    tiles = found.tiles.shape[1]
    rows = out_shared.shape[0] if shared else 0
    launch(
        _moe_down_kernel,
        (programs(tiles, triton.cdiv(rows, block_m), triton.cdiv(columns, block_n), group),),
        *(act, act_shared, weights, found.tiles, out, out_shared, tuple(down for _, _, down in shared)),
        *(tuple(down.stride(0) for _, _, down in shared), widths, rows, tiles, columns, depth, act.stride(0)),
        *(weights.stride(0), weights.stride(1), weights.stride(3), weights.stride(2), sum(widths)),
        options=chosen.options,
        PARTS=parts,
        SHARED=len(shared),
        BLOCK_M=block_m,
        EVEN_K=all(part % block_k == 0 for part in (depth, *widths)),
        EVEN_N=columns % block_n == 0,
        **chosen.constexprs,
    )


def grouped_experts(call: MoeExperts, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """Routed and shared experts for any number of rows; writes gate x and up x into hidden (N, k, 2, I) if given."""
    x, ids, weights = call.x, call.ids, call.weights
    gate_up_weights, down, shared = call.experts.gate_up, call.experts.down, call.experts.shared
    rows, columns = x.shape
    slots, k = ids.numel(), ids.shape[1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if rows == 0:
        return out
    _, _, block_m = tile_config(x, slots, gate_up_weights)
    found = sort_by_expert(ids, down.shape[0], block_m)
    act = x.new_empty((slots, down.shape[2]))
    act_shared = x.new_empty((rows, sum(part.shape[1] for _, _, part in shared))) if shared else None
    gate_up(x, gate_up_weights, found, act=act, hidden=hidden, shared=shared, act_shared=act_shared)
    y = x.new_empty((slots, columns))
    y_shared = torch.empty_like(out) if shared else None
    down_product(
        "moe_down",
        act,
        down.transpose(1, 2).unsqueeze(1),
        found,
        y,
        shared=shared,
        act_shared=act_shared,
        out_shared=y_shared,
    )
    gather_sum(y, found, out, k=k, weights=weights, shared=y_shared)
    return out
