"""Absorbed multi-head latent attention for few new tokens: queries are folded through w_uk, and keys and values are
the latent itself, which is read once for all heads.

Three launches: fold the queries; attend a block of rows (token, head) to one split of the keys; combine the splits and
project through w_uv.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.mla_attention.absorbed_wide import wide_split_attention
from openmythos.triton_kernels.mla_attention.tiles import (
    LOG2E,
    MAX_SPLITS,
    dot_rows,
    key_rows,
    load_tile,
    pieces,
    rope_piece,
    sequence_strides,
    softmax_step,
    split_count,
    store_tile,
)

if TYPE_CHECKING:
    from openmythos.ops.mla_attention import MlaAttention

# the widest latent whose accumulator fits the registers
WIDEST = 512


@triton.jit(do_not_specialize=["rows", "new", "dn"])
def _mla_fold_kernel(
    p_q, p_w, p_out, rows, new, dn, q_b, q_t, q_h, w_h, w_n, out_b, out_t, out_h,
    DN: tl.constexpr, DC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Query rows times w_uk of their head: columns BLOCK_C of BLOCK_R tokens."""
    i_head = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = (DC + BLOCK_C - 1) // BLOCK_C
    o_r = tl.program_id(0) // blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_r, m_c = o_r < rows, o_c < DC
    i_batch, i_new = (o_r // new).to(tl.int64), (o_r % new).to(tl.int64)
    p_q += i_batch * q_b + i_new * q_t + i_head * q_h
    p_w += i_head * w_h
    b_out = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for k in tl.range(0, dn, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < DN
        b_q = tl.load(p_q[:, None] + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)  # [BLOCK_R, BLOCK_K]
        b_w = tl.load(p_w + o_k[:, None] * w_n + o_c[None, :], mask=m_k[:, None] & m_c[None, :], other=0.0)
        b_out = tl.dot(b_q, b_w, b_out, input_precision="ieee")
    p_out += i_batch * out_b + i_new * out_t + i_head * out_h
    tl.store(p_out[:, None] + o_c[None, :], b_out.to(p_out.dtype.element_ty), mask=m_r[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=["total", "new", "heads", "dc", "table_b"])
def _mla_decode_kernel(
    p_q, p_q_rope, p_latent, p_k_rope, p_lens, p_table, p_part, p_lse, scale, total, new, heads, dc,
    q_rope_b, q_rope_t, q_rope_h, latent_b, latent_s, k_rope_b, k_rope_s, table_b,
    DC: tl.constexpr, DR: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, R: tl.constexpr,
    CAUSAL: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A block of rows (token, head) over one split of the keys: its part of the output, and its logsumexp.

    With CHUNK 0 the queries stay in registers and the key tile also serves as values. Otherwise the scores are summed
    over chunks of the latent and the queries are reread for each tile, for machines whose registers cannot hold the
    queries as an operand.
    """
    i_batch = tl.program_id(2).to(tl.int64)
    i_split, splits = tl.program_id(1), tl.num_programs(1)
    rows = new * heads
    o_r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_r = o_r < rows
    i_new, i_head = o_r // heads, o_r % heads
    length = total
    if p_lens is not None:
        length = tl.load(p_lens + i_batch).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, splits), BLOCK_N) * BLOCK_N
    start, stop = i_split * share, tl.minimum(i_split * share + share, length)
    limit = tl.where(m_r, length, 0)  # [BLOCK_M]
    if CAUSAL:
        limit = tl.where(m_r, length - new + i_new + 1, 0)
        last = (tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M, rows) - 1) // heads
        stop = tl.minimum(stop, length - new + last + 1)

    o_q = i_batch * rows + o_r
    p_q += o_q * DC
    p_q_rope += i_batch * q_rope_b + i_new.to(tl.int64) * q_rope_t + i_head.to(tl.int64) * q_rope_h
    b_qr = load_tile(p_q_rope, m_r, 0, R, DR)  # [BLOCK_M, R]
    if CHUNK == 0:
        b_q0 = load_tile(p_q, m_r, 0, C0, DC)  # [BLOCK_M, C0]
        if C1:
            b_q1 = load_tile(p_q, m_r, C0, C1, DC)
    p_pages = p_table
    if PAGE:
        p_pages += i_batch * table_b
    else:
        p_latent += i_batch * latent_b
        p_k_rope += i_batch * k_rope_b

    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_o0 = tl.zeros([BLOCK_M, C0], tl.float32)
    b_o1 = tl.zeros([BLOCK_M, C1 if C1 else 16], tl.float32)
    for first in range(start, stop, BLOCK_N):
        o_n = tl.arange(0, BLOCK_N)
        m_n = first + o_n < length
        p_key = key_rows(p_latent, p_pages, first, o_n, m_n, latent_b, latent_s, PAGE)
        p_rope = key_rows(p_k_rope, p_pages, first, o_n, m_n, k_rope_b, k_rope_s, PAGE)
        b_kr = load_tile(p_rope, m_n, 0, R, DR)  # [BLOCK_N, R]
        b_s = tl.dot(b_qr, b_kr.T, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        if CHUNK == 0:
            b_v0 = load_tile(p_key, m_n, 0, C0, DC)  # [BLOCK_N, C0]
            b_s = tl.dot(b_q0, b_v0.T, b_s, input_precision="ieee")
            if C1:
                b_v1 = load_tile(p_key, m_n, C0, C1, DC)
                b_s = tl.dot(b_q1, b_v1.T, b_s, input_precision="ieee")
        else:
            b_s = dot_rows(b_s, p_q, m_r, p_key, m_n, dc, DC, CHUNK)
            b_v0 = load_tile(p_key, m_n, 0, C0, DC)
            if C1:
                b_v1 = load_tile(p_key, m_n, C0, C1, DC)
        b_s = tl.where((first + o_n)[None, :] < limit[:, None], b_s * scale, float("-inf"))
        b_p, b_factor, b_m, b_l = softmax_step(b_s, b_m, b_l)
        b_p = b_p.to(p_latent.dtype.element_ty)
        b_o0 = tl.dot(b_p, b_v0, b_o0 * b_factor[:, None], input_precision="ieee")
        if C1:
            b_o1 = tl.dot(b_p, b_v1, b_o1 * b_factor[:, None], input_precision="ieee")

    o_part = (i_batch * splits + i_split) * rows + o_r
    tl.store(p_lse + o_part, b_m * 0.6931471805599453 + tl.log(b_l), mask=m_r)
    if start < stop:
        b_scale = 1.0 / tl.where(b_l == 0.0, 1.0, b_l)
        store_tile(p_part + o_part * DC, b_o0 * b_scale[:, None], m_r, 0, C0, DC)
        if C1:
            store_tile(p_part + o_part * DC, b_o1 * b_scale[:, None], m_r, C0, C1, DC)


@triton.jit(do_not_specialize=["tokens", "new", "heads", "splits", "dc"])
def _mla_combine_kernel(
    p_part, p_lse, p_w, p_out, p_out_lse, tokens, new, heads, splits, dc, w_h, w_v,
    DC: tl.constexpr, DV: tl.constexpr, MOST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The splits of BLOCK_R tokens of one head, weighted by their logsumexp, through columns BLOCK_V of w_uv.

    A program for one token reads BLOCK_S splits at once and multiplies without matrix instructions; a program for
    several tokens uses matrix instructions and reads split by split.
    """
    i_head = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = (DV + BLOCK_V - 1) // BLOCK_V
    i_column = tl.program_id(0) % blocks
    o_r = tl.program_id(0) // blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    o_v, o_most = i_column * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, MOST)
    m_r, m_v = o_r < tokens, o_v < DV
    rows = tl.cast(new * heads, tl.int64)
    i_batch, i_new = (o_r // new).to(tl.int64), o_r % new
    o_part = i_batch * splits * rows + i_new * heads + i_head  # [BLOCK_R]
    m_lse = m_r[:, None] & (o_most < splits)[None, :]
    b_lse = tl.load(p_lse + o_part[:, None] + o_most[None, :] * rows, mask=m_lse, other=float("-inf"))
    b_most = tl.max(b_lse, 1)
    b_most = tl.where(b_most == float("-inf"), 0.0, b_most)
    b_sum = tl.sum(tl.exp(b_lse - b_most[:, None]), 1)
    b_scale = 1.0 / tl.where(b_sum == 0.0, 1.0, b_sum)
    p_w += i_head * w_h + o_v * w_v
    o_out = (o_r.to(tl.int64) * heads + i_head) * DV
    # a split without visible keys has logsumexp -inf, and its part was never written
    if BLOCK_R == 1:
        o_row, one_most, one_scale = tl.sum(o_part, 0), tl.sum(b_most, 0), tl.sum(b_scale, 0)
        b_out = tl.zeros([BLOCK_V], tl.float32)
        for c in tl.range(0, dc, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            m_c = o_c < DC
            b_o = tl.zeros([BLOCK_C], tl.float32)
            for first in tl.range(0, splits, BLOCK_S):
                o_s = first + tl.arange(0, BLOCK_S)
                o_share = o_row + o_s * rows
                b_lse_s = tl.load(p_lse + o_share, mask=o_s < splits, other=float("-inf"))
                m_part = (b_lse_s != float("-inf"))[:, None] & m_c[None, :]
                b_part = tl.load(p_part + o_share[:, None] * DC + o_c[None, :], mask=m_part, other=0.0)
                b_o += tl.sum(b_part * (tl.exp(b_lse_s - one_most) * one_scale)[:, None], 0)
            b_w = tl.load(p_w[:, None] + o_c[None, :], mask=m_v[:, None] & m_c[None, :], other=0.0)
            b_out += tl.sum(b_w.to(tl.float32) * b_o[None, :], 1)  # [BLOCK_V]
        tl.store(p_out + tl.sum(o_out, 0) + o_v, b_out.to(p_out.dtype.element_ty), mask=m_v)
    else:
        b_out = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        for c in tl.range(0, dc, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            m_c = o_c < DC
            b_o = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
            for i_split in tl.range(0, splits):
                o_share = o_part + i_split * rows
                b_lse_s = tl.load(p_lse + o_share, mask=m_r, other=float("-inf"))
                m_part = (m_r & (b_lse_s != float("-inf")))[:, None] & m_c[None, :]
                b_part = tl.load(p_part + o_share[:, None] * DC + o_c[None, :], mask=m_part, other=0.0)
                b_o += b_part * (tl.exp(b_lse_s - b_most) * b_scale)[:, None]
            b_w = tl.load(p_w[:, None] + o_c[None, :], mask=m_v[:, None] & m_c[None, :], other=0.0)
            b_out = tl.dot(b_o.to(p_w.dtype.element_ty), b_w.T, b_out, input_precision="ieee")
        m_out = m_r[:, None] & m_v[None, :]
        tl.store(p_out + o_out[:, None] + o_v[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)
    if i_column == 0:
        tl.store(p_out_lse + (i_batch * heads + i_head) * new + i_new, b_most + tl.log(b_sum), mask=m_r)


def _fold(q_nope: torch.Tensor, w_uk: torch.Tensor) -> torch.Tensor:
    """q_nope (B, T, H, dn) through w_uk (H, dn, dc) -> (B, T, H, dc)."""
    batch, new, heads, dn = q_nope.shape
    dc = w_uk.shape[2]
    out = torch.empty((batch, new, heads, dc), dtype=q_nope.dtype, device=q_nope.device)
    chosen = config("mla_fold", target_of(q_nope), size=q_nope.element_size(), tokens=batch * new)
    block = chosen.constexprs
    grid = (triton.cdiv(dc, block["BLOCK_C"]) * triton.cdiv(batch * new, block["BLOCK_R"]), heads)
    launch(
        _mla_fold_kernel, grid, q_nope, w_uk, out, batch * new, new, dn, *q_nope.stride()[:3], *w_uk.stride()[:2],
        *out.stride()[:3], DN=dn, DC=dc, **block, options=chosen.options,
    )  # fmt: skip
    return out


def _combine(part: torch.Tensor, part_lse: torch.Tensor, w_uv: torch.Tensor, shape: tuple[int, int, int]):
    """Each split's result (B, splits, T H, dc) and logsumexp -> out (B, T, H, dv), lse (B, H, T)."""
    batch, new, heads = shape
    splits, dc, dv = part.shape[1], part.shape[3], w_uv.shape[1]
    out = torch.empty((*shape, dv), dtype=w_uv.dtype, device=part.device)
    lse = torch.empty((batch, heads, new), dtype=torch.float32, device=part.device)
    chosen = config("mla_combine", target_of(part), size=w_uv.element_size(), tokens=batch * new)
    block = chosen.constexprs
    grid = (triton.cdiv(dv, block["BLOCK_V"]) * triton.cdiv(batch * new, block["BLOCK_R"]), heads)
    launch(
        _mla_combine_kernel, grid, part, part_lse, w_uv, out, lse, batch * new, new, heads, splits, dc,
        *w_uv.stride()[:2], DC=dc, DV=dv, MOST=MAX_SPLITS, **block, options=chosen.options,
    )  # fmt: skip
    return out, lse


def _split_attention(q: torch.Tensor, call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Folded queries (B, T, H, dc) -> each split's result (B, splits, T H, dc) and its logsumexp."""
    q_rope, latent, k_rope, block_table = call.q_rope, call.latent, call.k_rope, call.block_table
    batch, new, heads, dc = q.shape
    dr = k_rope.shape[2]
    page = 0 if block_table is None else latent.shape[1]
    total = call.total
    rows, target = new * heads, target_of(latent)
    (first, second), rope = pieces(dc), rope_piece(dr)
    chosen = config("mla_decode", target, size=latent.element_size(), width=dc, rows=rows, paged=page)
    block = dict(chosen.constexprs)
    programs, least_keys = block.pop("PROGRAMS"), block.pop("LEAST_KEYS")
    blocks = triton.cdiv(rows, block["BLOCK_M"])
    splits = split_count(batch * blocks, total, programs * target.processors, least_keys)
    part = torch.empty((batch, splits, rows, dc), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((batch, splits, rows), dtype=torch.float32, device=q.device)
    launch(
        _mla_decode_kernel, (blocks, splits, batch), q, q_rope, latent, k_rope, call.seq_lens, block_table, part,
        part_lse, call.scale * LOG2E, total, new, heads, dc, *q_rope.stride()[:3], *sequence_strides(latent),
        *sequence_strides(k_rope), 0 if block_table is None else block_table.stride(0), DC=dc, DR=dr, C0=first,
        C1=second, R=rope, CAUSAL=call.causal, PAGE=page, **block, options=chosen.options,
    )  # fmt: skip
    return part, part_lse


def mla_absorbed(call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, T, H, dv) in q_nope's dtype, lse (B, H, T) float32; the queries are folded through w_uk."""
    batch, new, heads, _ = call.q_nope.shape
    attend = _split_attention if call.latent.shape[2] <= WIDEST else wide_split_attention
    part, part_lse = attend(_fold(call.q_nope, call.w_uk), call)
    return _combine(part, part_lse, call.w_uv, (batch, new, heads))
