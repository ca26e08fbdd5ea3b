"""Groups (row, choice) slots by expert, by counting: stable, on the device, without atomics and without padding.

Slot s = n * k + j is row n's j-th choice. After sorting, an expert's slots are consecutive positions in slot order.
GEMMs work on tiles of BLOCK_M positions of one expert. There are at most (N k + min(E, N k) (BLOCK_M - 1)) // BLOCK_M
tiles, a bound from shapes alone, so grids never depend on data. Slots with an id out of range have no position.

Counting: 12 bytes per slot move, and every program reads the counts of all blocks (blocks * E * 4 bytes, from cache):
8192 rows of 4 in 64 experts are 0.4 MB and 4 MB, against 100 MB for one GEMM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of

SLOTS_BLOCK = 256  # ranks compare all pairs: 65,536 comparisons per program, 32 per thread at a time
TILES_BLOCK = 16
_COUNTS_CHUNK = tl.constexpr(8)
_RANK_CHUNK = tl.constexpr(32)


class Sorted(NamedTuple):
    """Slots grouped by expert. Position p holds slot `slots[p]` of row `rows[p]`; slot s went to `positions[s]` or -1.

    Expert e has positions offsets[e] to offsets[e + 1]. `tiles` (3, tiles): expert (or -1), first position, last + 1.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    offsets: torch.Tensor
    tiles: torch.Tensor
    block_m: int


@triton.jit
def _slot_ids(p_ids, o_s, slots, k, ids_stride, experts):
    """The expert of each slot, -1 past the last slot and for ids out of range."""
    b_id = tl.load(p_ids + (o_s // k).to(tl.int64) * ids_stride + o_s % k, mask=o_s < slots, other=-1)
    return tl.where((b_id >= 0) & (b_id < experts), b_id, -1).to(tl.int32)


@triton.jit(do_not_specialize=["slots"])
def _moe_sort_count_kernel(p_ids, p_counts, slots, k, ids_stride, experts, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    i_block = tl.program_id(0)
    b_id = _slot_ids(p_ids, i_block * BLOCK + tl.arange(0, BLOCK), slots, k, ids_stride, experts)
    b_count = tl.histogram(b_id, EXPERTS, mask=b_id >= 0)  # [EXPERTS]
    tl.store(p_counts + i_block.to(tl.int64) * EXPERTS + tl.arange(0, EXPERTS), b_count)


@triton.jit(do_not_specialize=["slots", "blocks", "tiles"])
def _moe_sort_place_kernel(
    p_ids,
    p_counts,
    p_slots,
    p_rows,
    p_positions,
    p_offsets,
    p_tiles,
    slots,
    k,
    ids_stride,
    experts,
    blocks,
    tiles,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILES: tl.constexpr,
):
    i_block = tl.program_id(0)
    o_e = tl.arange(0, EXPERTS)
    b_all = tl.zeros([EXPERTS], tl.int32)
    b_before = tl.zeros([EXPERTS], tl.int32)
    for i_first in range(0, blocks, _COUNTS_CHUNK):
        o_b = i_first + tl.arange(0, _COUNTS_CHUNK)
        b_count = tl.load(
            p_counts + o_b.to(tl.int64)[:, None] * EXPERTS + o_e[None, :], mask=(o_b < blocks)[:, None], other=0
        )
        b_all += tl.sum(b_count, axis=0)
        b_before += tl.sum(tl.where((o_b < i_block)[:, None], b_count, 0), axis=0)
    b_start = tl.cumsum(b_all, axis=0) - b_all

    if i_block == 0:
        tl.store(p_offsets + o_e, b_start, mask=o_e < experts)
        tl.store(p_offsets + experts, tl.sum(b_all, axis=0))
    if i_block < blocks:
        o_s = i_block * BLOCK + tl.arange(0, BLOCK)
        b_id = _slot_ids(p_ids, o_s, slots, k, ids_stride, experts)
        b_rank = tl.zeros([BLOCK], tl.int32)
        for i_first in range(i_block * BLOCK, (i_block + 1) * BLOCK, _RANK_CHUNK):
            o_t = i_first + tl.arange(0, _RANK_CHUNK)
            b_other = _slot_ids(p_ids, o_t, slots, k, ids_stride, experts)
            m_earlier = (b_id[:, None] == b_other[None, :]) & (o_t[None, :] < o_s[:, None])  # [BLOCK, _RANK_CHUNK]
            b_rank += tl.sum(m_earlier.to(tl.int32), axis=1)
        m_id = b_id >= 0
        b_position = b_rank + tl.gather(b_start + b_before, tl.where(m_id, b_id, 0), axis=0)
        tl.store(p_positions + o_s, tl.where(m_id, b_position, -1), mask=o_s < slots)
        tl.store(p_slots + b_position, o_s, mask=m_id)
        tl.store(p_rows + b_position, o_s // k, mask=m_id)
    else:
        o_tile = (i_block - blocks) * TILES + tl.arange(0, TILES)
        b_tiles = tl.cdiv(b_all, BLOCK_M)
        m_past = (tl.cumsum(b_tiles, axis=0)[None, :] <= o_tile[:, None]) & (o_e < experts)[
            None, :
        ]  # [TILES, EXPERTS]
        b_expert = tl.sum(m_past.to(tl.int32), axis=1)
        b_in_expert = o_tile - tl.sum(tl.where(m_past, b_tiles[None, :], 0), axis=1)
        b_first = tl.sum(tl.where(m_past, b_all[None, :], 0), axis=1)
        m_used = b_expert < experts
        b_end = b_first + tl.gather(b_all, tl.where(m_used, b_expert, 0), axis=0)
        tl.store(p_tiles + o_tile, tl.where(m_used, b_expert, -1), mask=o_tile < tiles)
        tl.store(p_tiles + tiles + o_tile, b_first + b_in_expert * BLOCK_M, mask=o_tile < tiles)
        tl.store(p_tiles + 2 * tiles + o_tile, b_end, mask=o_tile < tiles)


def sort_by_expert(ids: torch.Tensor, experts: int, block_m: int) -> Sorted:
    """ids (N, k) with last stride 1 and N > 0 -> its slots grouped by expert, in tiles of at most block_m."""
    slots, k = ids.numel(), ids.shape[1]
    blocks = triton.cdiv(slots, SLOTS_BLOCK)
    tiles = (slots + min(experts, slots) * (block_m - 1)) // block_m
    width = triton.next_power_of_2(experts)

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=ids.device)

    counts = integers(blocks, width)
    found = Sorted(
        integers(slots), integers(slots), integers(slots), integers(experts + 1), integers(3, tiles), block_m
    )
    options = config("moe_sort", target_of(ids)).options
    launch(
        _moe_sort_count_kernel,
        (blocks,),
        *(ids, counts, slots, k, ids.stride(0), experts),
        options=options,
        BLOCK=SLOTS_BLOCK,
        EXPERTS=width,
    )
    launch(
        _moe_sort_place_kernel,
        (blocks + triton.cdiv(tiles, TILES_BLOCK),),
        *(ids, counts, *found[:5], slots, k, ids.stride(0), experts, blocks, tiles),
        options=options,
        BLOCK=SLOTS_BLOCK,
        EXPERTS=width,
        BLOCK_M=block_m,
        TILES=TILES_BLOCK,
    )
    return found
