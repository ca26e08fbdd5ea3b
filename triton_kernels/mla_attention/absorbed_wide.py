"""Absorbed attention over latents too wide to accumulate in registers (1024 in the largest models).

A float32 accumulator of 64 rows and 1024 columns fills the registers of an SM, and splitting its columns over programs
would compute the scores once per program. One launch writes the softmax numerators, relative to the maximum of their
tile of keys; a second multiplies them by the latent. Both are plain matrix products. The latent is read twice, which
the products hide at these head counts (96 and 128).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.mla_attention.tiles import (
    LOG2E,
    MAX_SPLITS,
    dot_rows,
    key_rows,
    load_tile,
    rope_piece,
    sequence_strides,
    split_count,
)

if TYPE_CHECKING:
    from openmythos.ops.mla_attention import MlaAttention

# bytes of numerators in memory at a time; more keys than fit are processed in segments
WORKSPACE = 1 << 28


@triton.jit(do_not_specialize=["begin", "end", "new", "heads", "dc", "table_b"])
def _mla_scores_kernel(
    p_q, p_q_rope, p_latent, p_k_rope, p_lens, p_table, p_numerator, p_max, p_sum, scale, begin, end, new, heads, dc,
    q_rope_b, q_rope_t, q_rope_h, latent_b, latent_s, k_rope_b, k_rope_s, table_b,
    DC: tl.constexpr, DR: tl.constexpr, R: tl.constexpr, CAUSAL: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of exp2(score - the tile's maximum), the maxima and the sums, for rows (token, head) and BLOCK_N keys.

    Keys from `begin` to `end`, or to the sequence's length if that is less.
    """
    i_batch, rows = tl.program_id(1).to(tl.int64), new * heads
    blocks = tl.cdiv(rows, BLOCK_M)
    i_tile, tiles = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    o_r = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    m_r = o_r < rows
    i_new, i_head, first = o_r // heads, o_r % heads, begin + i_tile * BLOCK_N
    length = end
    if p_lens is not None:
        length = tl.load(p_lens + i_batch).to(tl.int32)
    stop = tl.minimum(length, end)
    if first >= stop:
        return
    m_n = first + o_n < stop
    p_pages = p_table
    if PAGE:
        p_pages += i_batch * table_b
    else:
        p_latent += i_batch * latent_b
        p_k_rope += i_batch * k_rope_b
    p_key = key_rows(p_latent, p_pages, first, o_n, m_n, latent_b, latent_s, PAGE)
    p_rope = key_rows(p_k_rope, p_pages, first, o_n, m_n, k_rope_b, k_rope_s, PAGE)
    p_q += (i_batch * rows + o_r) * DC
    b_s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_s = dot_rows(b_s, p_q, m_r, p_key, m_n, dc, DC, CHUNK)
    p_q_rope += i_batch * q_rope_b + i_new.to(tl.int64) * q_rope_t + i_head.to(tl.int64) * q_rope_h
    b_qr = load_tile(p_q_rope, m_r, 0, R, DR)
    b_kr = load_tile(p_rope, m_n, 0, R, DR)
    b_s = tl.dot(b_qr, b_kr.T, b_s, input_precision="ieee")
    limit = tl.where(m_r, tl.minimum(length - new + i_new + 1, stop) if CAUSAL else stop, 0)
    b_s = tl.where((first + o_n)[None, :] < limit[:, None], b_s * scale, float("-inf"))
    b_max = tl.max(b_s, 1)
    b_p = tl.math.exp2(b_s - tl.where(b_max == float("-inf"), 0.0, b_max)[:, None])
    o_stat = (i_batch * tiles + i_tile) * rows + o_r
    tl.store(p_max + o_stat, b_max, mask=m_r)
    tl.store(p_sum + o_stat, tl.sum(b_p, 1), mask=m_r)
    p_numerator += (i_batch * rows + o_r) * (tl.cast(tiles, tl.int64) * BLOCK_N) + i_tile * BLOCK_N
    tl.store(p_numerator[:, None] + o_n[None, :], b_p.to(p_numerator.dtype.element_ty), mask=m_r[:, None])


@triton.jit(do_not_specialize=["begin", "end", "tiles", "rows", "first_split", "all_splits", "table_b"])
def _mla_values_kernel(
    p_latent, p_lens, p_table, p_numerator, p_max, p_sum, p_part, p_lse, begin, end, tiles, rows, first_split,
    all_splits, latent_b, latent_s, table_b,
    DC: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Numerators times BLOCK_C columns of the latent over one split of the keys, and the split's logsumexp."""
    i_batch = tl.program_id(2).to(tl.int64)
    i_split, splits = tl.program_id(1), tl.num_programs(1)
    blocks: tl.constexpr = (DC + BLOCK_C - 1) // BLOCK_C
    i_column = tl.program_id(0) % blocks
    o_r = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = i_column * BLOCK_C + tl.arange(0, BLOCK_C)
    o_n = tl.arange(0, BLOCK_N)
    m_r, m_c = o_r < rows, o_c < DC
    keys = end - begin
    if p_lens is not None:
        keys = tl.maximum(tl.minimum(tl.load(p_lens + i_batch).to(tl.int32), end) - begin, 0)
    share = tl.cdiv(tl.cdiv(keys, splits), BLOCK_N) * BLOCK_N
    start, stop = i_split * share, tl.minimum(i_split * share + share, keys)
    p_pages = p_table
    if PAGE:
        p_pages += i_batch * table_b
    else:
        p_latent += i_batch * latent_b
    p_row = p_numerator + (i_batch * rows + o_r) * (tl.cast(tiles, tl.int64) * BLOCK_N)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_o = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for first in range(start, stop, BLOCK_N):
        m_n = first + o_n < keys
        o_stat = (i_batch * tiles + first // BLOCK_N) * rows + o_r
        b_tile_max = tl.load(p_max + o_stat, mask=m_r, other=float("-inf"))
        b_tile_sum = tl.load(p_sum + o_stat, mask=m_r, other=0.0)
        b_p = tl.load(p_row[:, None] + (first + o_n)[None, :], mask=m_r[:, None], other=0.0)  # [BLOCK_M, BLOCK_N]
        p_key = key_rows(p_latent, p_pages, begin + first, o_n, m_n, latent_b, latent_s, PAGE)
        m_v = m_n[:, None]
        if DC % BLOCK_C:
            m_v = m_v & m_c[None, :]
        b_v = tl.load(p_key[:, None] + o_c[None, :], mask=m_v, other=0.0)  # [BLOCK_N, BLOCK_C]
        b_next = tl.maximum(b_m, b_tile_max)
        b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)
        b_old, b_new = tl.math.exp2(b_m - b_safe), tl.math.exp2(b_tile_max - b_safe)
        b_p = (b_p.to(tl.float32) * b_new[:, None]).to(p_latent.dtype.element_ty)
        b_o = tl.dot(b_p, b_v, b_o * b_old[:, None], input_precision="ieee")
        b_l = b_l * b_old + b_tile_sum * b_new
        b_m = b_next

    o_part = (i_batch * all_splits + first_split + i_split) * rows + o_r
    if i_column == 0:
        tl.store(p_lse + o_part, b_m * 0.6931471805599453 + tl.log(b_l), mask=m_r)
    if start < stop:
        b_o *= (1.0 / tl.where(b_l == 0.0, 1.0, b_l))[:, None]
        tl.store(p_part + o_part[:, None] * DC + o_c[None, :], b_o, mask=m_r[:, None] & m_c[None, :])


def wide_split_attention(q: torch.Tensor, call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Folded queries (B, T, H, dc) -> each split's result (B, splits, T H, dc) and its logsumexp."""
    q_rope, latent, k_rope = call.q_rope, call.latent, call.k_rope
    seq_lens, block_table, total = call.seq_lens, call.block_table, call.total
    batch, new, heads, dc = q.shape
    page = 0 if block_table is None else latent.shape[1]
    table_stride = 0 if block_table is None else block_table.stride(0)
    rows, target, size = new * heads, target_of(latent), latent.element_size()
    scores = config("mla_scores", target, size=size, rows=rows)
    values = config("mla_values", target, size=size, rows=rows)
    tile, block = scores.constexprs["BLOCK_N"], dict(values.constexprs)
    programs, least_keys = block.pop("PROGRAMS"), block.pop("LEAST_KEYS")
    segment = max(WORKSPACE // max(batch * rows * size, 1), triton.cdiv(total, MAX_SPLITS), 1)
    segment = min(triton.cdiv(segment, tile), max(triton.cdiv(total, tile), 1)) * tile
    segments, tiles = max(triton.cdiv(total, segment), 1), segment // tile
    blocks = triton.cdiv(rows, block["BLOCK_M"]) * triton.cdiv(dc, block["BLOCK_C"])
    splits = split_count(batch * blocks, segment, programs * target.processors, least_keys)
    splits = min(splits, MAX_SPLITS // segments)
    # A numerator is at most 1, so float16 serves both 16-bit dtypes; bfloat16 would round it more.
    kind = torch.float16 if size == 2 else torch.float32
    numerator = torch.empty((batch, rows, segment), dtype=kind, device=q.device)
    maxima = torch.empty((batch, tiles, rows), dtype=torch.float32, device=q.device)
    sums = torch.empty((batch, tiles, rows), dtype=torch.float32, device=q.device)
    part = torch.empty((batch, segments * splits, rows, dc), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((batch, segments * splits, rows), dtype=torch.float32, device=q.device)
    score_grid = (triton.cdiv(rows, scores.constexprs["BLOCK_M"]) * tiles, batch)
    for i in range(segments):
        begin, end = i * segment, min(i * segment + segment, total)
        launch(
            _mla_scores_kernel, score_grid, q, q_rope, latent, k_rope, seq_lens, block_table, numerator, maxima, sums,
            call.scale * LOG2E, begin, end, new, heads, dc, *q_rope.stride()[:3], *sequence_strides(latent),
            *sequence_strides(k_rope), table_stride, DC=dc, DR=k_rope.shape[2], R=rope_piece(k_rope.shape[2]),
            CAUSAL=call.causal, PAGE=page, **scores.constexprs, options=scores.options,
        )  # fmt: skip
        launch(
            _mla_values_kernel, (blocks, splits, batch), latent, seq_lens, block_table, numerator, maxima, sums, part,
            part_lse, begin, end, tiles, rows, i * splits, segments * splits, *sequence_strides(latent), table_stride,
            DC=dc, PAGE=page, BLOCK_N=tile, **block, options=values.options,
        )  # fmt: skip
    return part, part_lse
