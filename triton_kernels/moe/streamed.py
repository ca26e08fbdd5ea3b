"""moe_experts for a few rows: two launches that read each needed weight once, at memory bandwidth.

The programs of an expert's first slot serve all rows that chose the expert and record where they wrote the results.
Routing weights are folded into the activations, so the second product also sums over experts: its depth is the hidden
units of all experts side by side. A shared expert is cut into chunks of a routed expert's width, which every row chose
with weight 1. A single row is multiplied by FMAs, with weights going from memory to registers; more rows are padded to
16 and use matrix instructions. Nothing is sorted, no program waits for another, and every sum has a fixed order.

Counting: 3 D I weights for each distinct expert and for each of S k shared chunks, 201 + 101 MB for one row of
mythos_1b, 70 us at 4.3 TB/s; activations are 0.1 MB. A program has BLOCK_I * BLOCK_D * 2 weights in flight; with 4
programs per processor that is 128 KB, where 4.3 TB/s times 1 us of latency need 33 KB. Above 16 rows an expert's rows
no longer fit one tile, and the grouped kernels read weights as often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.moe.tiles import picked, shared_chunk, swiglu

if TYPE_CHECKING:
    from openmythos.ops.moe import MoeExperts

MAX_ROWS = 16
MAX_SLOTS = 256
_NOWHERE = tl.constexpr(2**30)
_CHUNK = tl.constexpr(16)


@triton.jit
def _gate_up_rows(
    p_x,
    m_n,
    p_gate,
    p_up,
    o_unit,
    depth,
    x_stride,
    gate_stride,
    up_stride,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """SwiGLU of rows m_n of x with units o_unit: [ROWS, BLOCK_I]."""
    o_d = tl.arange(0, BLOCK_D)
    p_gate += o_unit.to(tl.int64)[:, None] * gate_stride + o_d[None, :]  # [BLOCK_I, BLOCK_D]
    p_up += o_unit.to(tl.int64)[:, None] * up_stride + o_d[None, :]
    p_x += tl.arange(0, ROWS).to(tl.int64)[:, None] * x_stride + o_d[None, :]  # [ROWS, BLOCK_D]
    b_gate = tl.zeros([ROWS, BLOCK_I], tl.float32)
    b_up = tl.zeros([ROWS, BLOCK_I], tl.float32)
    for i_d in range(0, depth, BLOCK_D):
        if EVEN_D:
            b_wg = tl.load(p_gate)
            b_wu = tl.load(p_up)
            b_x = tl.load(p_x, mask=m_n[:, None], other=0.0)
        else:
            m_d = (o_d < depth - i_d)[None, :]
            b_wg = tl.load(p_gate, mask=m_d, other=0.0)
            b_wu = tl.load(p_up, mask=m_d, other=0.0)
            b_x = tl.load(p_x, mask=m_n[:, None] & m_d, other=0.0)
        if ROWS == 1:
            b_gate += tl.sum(b_wg.to(tl.float32) * b_x.to(tl.float32), axis=1)[None, :]
            b_up += tl.sum(b_wu.to(tl.float32) * b_x.to(tl.float32), axis=1)[None, :]
        else:
            b_gate = tl.dot(b_x, tl.trans(b_wg), b_gate, input_precision="ieee")
            b_up = tl.dot(b_x, tl.trans(b_wu), b_up, input_precision="ieee")
        p_gate += BLOCK_D
        p_up += BLOCK_D
        p_x += BLOCK_D
    return swiglu(b_gate, b_up)


@triton.jit
def _leaders(p_ids, i_slot, slots, k, ids_stride, experts, SLOTS: tl.constexpr):
    """(number of leading slots before this slot, number in total); an expert's first slot leads."""
    o_s = tl.arange(0, SLOTS)
    b_id = tl.load(p_ids + o_s // k * ids_stride + o_s % k, mask=o_s < slots, other=-1)
    b_earlier = tl.zeros([SLOTS], tl.int32)
    for i_first in range(0, slots, _CHUNK):
        o_t = i_first + tl.arange(0, _CHUNK)
        b_other = tl.load(p_ids + o_t // k * ids_stride + o_t % k, mask=o_t < slots, other=-1)
        m_earlier = (b_id[:, None] == b_other[None, :]) & (o_t[None, :] < o_s[:, None])
        b_earlier += tl.sum(m_earlier.to(tl.int32), axis=1)
    b_leads = ((b_earlier == 0) & (b_id >= 0) & (b_id < experts)).to(tl.int32)
    return tl.sum(tl.where(o_s < i_slot, b_leads, 0)), tl.sum(b_leads)


@triton.jit(do_not_specialize=["rows", "slots"])
def _moe_decode_up_kernel(
    p_x,
    p_ids,
    p_weights,
    p_gate_up,
    p_units,
    p_act,
    p_act_shared,
    p_gates,
    p_ups,
    gate_strides,
    up_strides,
    widths,
    rows,
    slots,
    depth,
    width,
    experts,
    x_stride,
    ids_stride,
    weights_stride,
    expert_stride,
    up_offset,
    weight_stride,
    shared_width,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_I: tl.constexpr,
):
    """Writes p_units: the number of distinct experts, their ids, and where each row's activations are in p_act."""
    i_block = tl.program_id(0)
    i_slot = tl.program_id(1)
    o_n = tl.arange(0, ROWS)
    o_i = i_block * BLOCK_I + tl.arange(0, BLOCK_I)
    if i_slot < slots:
        o_k = tl.arange(0, K_BLOCK)
        m_k = (o_n < rows)[:, None] & (o_k < K)[None, :]
        i_expert = tl.load(p_ids + i_slot // K * ids_stride + i_slot % K)
        b_id = tl.load(p_ids + o_n[:, None] * ids_stride + o_k[None, :], mask=m_k, other=-1)  # [ROWS, K_BLOCK]
        b_weight = tl.load(p_weights + o_n[:, None] * weights_stride + o_k[None, :], mask=m_k, other=0.0)
        m_same = (b_id == i_expert) & m_k
        b_position = tl.min(tl.where(m_same, o_n[:, None] * K + o_k[None, :], _NOWHERE), axis=1)  # [ROWS]
        leads = (tl.min(b_position) == i_slot) & (i_expert >= 0) & (i_expert < experts)
        if i_block == 0:
            i_unit, units = _leaders(p_ids, i_slot, slots, K, ids_stride, experts, SLOTS)
            if i_slot == 0:
                tl.store(p_units, units)
            if leads:
                tl.store(p_units + 1 + i_unit, i_expert.to(tl.int32))
                tl.store(p_units + 1 + slots + i_unit * ROWS + o_n, b_position)
        if leads:
            p_gate = p_gate_up + i_expert.to(tl.int64) * expert_stride
            o_unit = o_i if EVEN_I else tl.minimum(o_i, width - 1)
            m_n = b_position < slots
            b_act = _gate_up_rows(
                p_x,
                m_n,
                p_gate,
                p_gate + up_offset,
                o_unit,
                depth,
                x_stride,
                weight_stride,
                weight_stride,
                ROWS,
                BLOCK_I,
                BLOCK_D,
                EVEN_D,
            )
            b_act *= tl.sum(tl.where(m_same, b_weight.to(tl.float32), 0.0), axis=1)[:, None]
            p_out = p_act + b_position.to(tl.int64)[:, None] * width + o_i[None, :]
            tl.store(p_out, b_act.to(p_act.dtype.element_ty), mask=m_n[:, None] & (o_i < width)[None, :])
    else:
        if SHARED:
            s, i_first, units, i_hidden = shared_chunk(i_slot - slots, widths, width)
            gate_stride = picked(gate_strides, s)
            up_stride = picked(up_strides, s)
            p_gate = picked(p_gates, s) + tl.cast(i_first, tl.int64) * gate_stride
            p_up = picked(p_ups, s) + tl.cast(i_first, tl.int64) * up_stride
            o_unit = o_i if EVEN_I else tl.minimum(o_i, units - 1)
            m_n = o_n < rows
            b_act = _gate_up_rows(
                p_x, m_n, p_gate, p_up, o_unit, depth, x_stride, gate_stride, up_stride, ROWS, BLOCK_I, BLOCK_D, EVEN_D
            )
            p_out = p_act_shared + o_n[:, None] * shared_width + (i_hidden + o_i)[None, :]
            m_out = m_n[:, None] & (o_i < tl.minimum(units, width))[None, :]
            tl.store(p_out, b_act.to(p_act_shared.dtype.element_ty), mask=m_out)


@triton.jit
def _down_rows(b_acc, p_a, m_n, p_w, depth, ROWS: tl.constexpr, BLOCK_I: tl.constexpr, EVEN_I: tl.constexpr):
    """b_acc + activations (rows at p_a [ROWS], masked by m_n) times weights (rows at p_w [BLOCK_O]) over `depth`."""
    o_i = tl.arange(0, BLOCK_I)
    p_a = p_a[:, None] + o_i[None, :]  # [ROWS, BLOCK_I]
    p_w = p_w[:, None] + o_i[None, :]  # [BLOCK_O, BLOCK_I]
    for i_i in range(0, depth, BLOCK_I):
        if EVEN_I:
            b_w = tl.load(p_w)
            b_a = tl.load(p_a, mask=m_n[:, None], other=0.0)
        else:
            m_i = (o_i < depth - i_i)[None, :]
            b_w = tl.load(p_w, mask=m_i, other=0.0)
            b_a = tl.load(p_a, mask=m_n[:, None] & m_i, other=0.0)
        if ROWS == 1:
            b_acc += tl.sum(b_w.to(tl.float32) * b_a.to(tl.float32), axis=1)[None, :]
        else:
            b_acc = tl.dot(b_a, tl.trans(b_w), b_acc, input_precision="ieee")
        p_a += BLOCK_I
        p_w += BLOCK_I
    return b_acc


@triton.jit
def _unroutable(p_ids, o_n, rows, ids_stride, experts, K: tl.constexpr, K_BLOCK: tl.constexpr):
    """Which rows have an id out of range."""
    o_k = tl.arange(0, K_BLOCK)
    m_k = (o_n < rows)[:, None] & (o_k < K)[None, :]
    b_id = tl.load(p_ids + o_n[:, None] * ids_stride + o_k[None, :], mask=m_k, other=0)
    return tl.max(((b_id < 0) | (b_id >= experts)).to(tl.int32), axis=1) > 0


@triton.jit(do_not_specialize=["rows", "slots", "chunks"])
def _moe_decode_down_kernel(
    p_ids,
    p_units,
    p_act,
    p_act_shared,
    p_down,
    p_out,
    p_downs,
    down_strides,
    widths,
    rows,
    slots,
    columns,
    width,
    experts,
    chunks,
    ids_stride,
    expert_stride,
    weight_stride,
    shared_width,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    EVEN_I: tl.constexpr,
    EVEN_O: tl.constexpr,
):
    """SPLIT programs divide experts and shared chunks and write partial sums; a single program writes the result."""
    i_split = tl.program_id(1)
    o_n = tl.arange(0, ROWS)
    o_d = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_row = (o_d if EVEN_O else tl.minimum(o_d, columns - 1)).to(tl.int64)
    b_acc = tl.zeros([ROWS, BLOCK_O], tl.float32)
    units = tl.load(p_units)
    for i_unit in range(i_split, units, SPLIT):
        i_expert = tl.load(p_units + 1 + i_unit).to(tl.int64)
        b_position = tl.load(p_units + 1 + slots + i_unit * ROWS + o_n)
        m_n = b_position < slots
        p_w = p_down + i_expert * expert_stride + o_row * weight_stride
        b_acc = _down_rows(b_acc, p_act + b_position.to(tl.int64) * width, m_n, p_w, width, ROWS, BLOCK_I, EVEN_I)
    if SHARED:
        for i_chunk in range((i_split - units % SPLIT + SPLIT) % SPLIT, chunks, SPLIT):
            s, i_first, left, i_hidden = shared_chunk(i_chunk, widths, width)
            p_w = picked(p_downs, s) + o_row * picked(down_strides, s) + i_first
            p_a = p_act_shared + o_n * shared_width + i_hidden
            b_acc = _down_rows(b_acc, p_a, o_n < rows, p_w, tl.minimum(left, width), ROWS, BLOCK_I, EVEN_I)
    if SPLIT == 1:
        m_bad = _unroutable(p_ids, o_n, rows, ids_stride, experts, K, K_BLOCK)
        b_acc = tl.where(m_bad[:, None], float("nan"), b_acc)
    m_out = (o_n < rows)[:, None] & (o_d < columns)[None, :]
    p_y = p_out + (i_split * rows + o_n).to(tl.int64)[:, None] * columns + o_d[None, :]
    tl.store(p_y, b_acc.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["rows"])
def _moe_decode_sum_kernel(
    p_partial,
    p_ids,
    p_out,
    rows,
    columns,
    experts,
    ids_stride,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0)
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_split in tl.static_range(SPLIT):
        p_part = p_partial + (i_split * rows + i_row).to(tl.int64) * columns + o_d
        b_sum += tl.load(p_part, mask=o_d < columns, other=0.0)
    m_bad = _unroutable(p_ids, i_row + tl.arange(0, 1), rows, ids_stride, experts, K, K_BLOCK)  # [1]
    b_sum = tl.where(m_bad, float("nan"), b_sum)
    tl.store(p_out + i_row.to(tl.int64) * columns + o_d, b_sum.to(p_out.dtype.element_ty), mask=o_d < columns)


def streamed_experts(call: MoeExperts) -> torch.Tensor:
    """Routed and shared experts for 1 to MAX_ROWS rows and at most MAX_SLOTS choices, each weight read once."""
    x, ids, weights = call.x, call.ids, call.weights
    gate_up, down, shared = call.experts.gate_up, call.experts.down, call.experts.shared
    rows, depth = x.shape
    experts, columns, width = down.shape
    slots, k = ids.numel(), ids.shape[1]
    target, tile_rows = target_of(x), 1 if rows == 1 else MAX_ROWS
    odd = int(any(size % 16 for size in (depth, width)))
    key = {"bits": 8 * x.element_size(), "rows": tile_rows, "odd": odd}
    widths = tuple(gate.shape[0] for gate, _, _ in shared)
    chunks = sum(triton.cdiv(part, width) for part in widths)
    units = torch.empty(1 + slots * (1 + tile_rows), dtype=torch.int32, device=x.device)
    act = x.new_empty((slots, width))
    act_shared = x.new_empty((rows, sum(widths))) if shared else None
    # as wide as a matrix instruction: the compiler may use its layout for the ids of 16 rows as well
    routing = {"K": k, "K_BLOCK": max(triton.next_power_of_2(k), tile_rows)}
    common = {**routing, "SHARED": len(shared), "ROWS": tile_rows}

    up = config("moe_decode_up", target, **key)
    block_i = up.constexprs["BLOCK_I"]
    launch(
        _moe_decode_up_kernel,
        (triton.cdiv(width, block_i), slots + chunks),
        *(x, ids, weights, gate_up, units, act, act_shared, tuple(part for part, _, _ in shared)),
        *(tuple(part for _, part, _ in shared), tuple(part.stride(0) for part, _, _ in shared)),
        *(tuple(part.stride(0) for _, part, _ in shared), widths, rows, slots, depth, width, experts, x.stride(0)),
        *(ids.stride(0), weights.stride(0), gate_up.stride(0), gate_up.stride(1), gate_up.stride(2), sum(widths)),
        options=up.options,
        SLOTS=triton.next_power_of_2(slots),
        EVEN_D=depth % up.constexprs["BLOCK_D"] == 0,
        EVEN_I=all(part % block_i == 0 for part in (width, *widths)),
        **common,
        **up.constexprs,
    )

    chosen = config("moe_decode_down", target, columns=columns, **key)
    block_o, block_i, split = (chosen.constexprs[name] for name in ("BLOCK_O", "BLOCK_I", "SPLIT"))
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    partial = torch.empty((split, rows, columns), dtype=torch.float32, device=x.device) if split > 1 else out
    launch(
        _moe_decode_down_kernel,
        (triton.cdiv(columns, block_o), split),
        *(ids, units, act, act_shared, down, partial, tuple(part for _, _, part in shared)),
        *(tuple(part.stride(0) for _, _, part in shared), widths, rows, slots, columns, width, experts, chunks),
        *(ids.stride(0), down.stride(0), down.stride(1), sum(widths)),
        options=chosen.options,
        EVEN_I=all(part % block_i == 0 for part in (width, *(part % width for part in widths))),
        EVEN_O=columns % block_o == 0,
        **common,
        **chosen.constexprs,
    )
    if split > 1:
        total = config("moe_gather_sum", target, columns=columns)
        launch(
            _moe_decode_sum_kernel,
            (rows, triton.cdiv(columns, total.constexprs["BLOCK"])),
            *(partial, ids, out, rows, columns, experts, ids.stride(0)),
            options=total.options,
            SPLIT=split,
            **routing,
            **total.constexprs,
        )
    return out
