"""Decompressed multi-head latent attention: heads with keys of dn + dr and values of dv channels.

The rope part of a key is one row that all heads read; keys and values come from decompress.py. Very long contexts are
decompressed and attended to segment by segment, with the running softmax kept in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.mla_attention.decompress import gather_pages, joint_weight, product
from openmythos.triton_kernels.mla_attention.tiles import (
    LOG2E,
    dot_rows,
    load_tile,
    pieces,
    rope_piece,
    softmax_step,
    store_tile,
)

if TYPE_CHECKING:
    from openmythos.ops.mla_attention import MlaAttention

# bytes of keys and values in memory at a time: from 2 GiB, their offsets take twice the registers on AMD
WORKSPACE = (1 << 31) - 1


@triton.jit
def _attend(
    p_q, m_m, b_q0, b_q1, b_qr, p_key, p_value, p_rope, first, stop, limit, scale, dn, b_o0, b_o1, b_m, b_l,
    DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, R: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys, starting at row `first`: the state (output, maximum, sum) after it."""
    o_n = first + tl.arange(0, BLOCK_N)
    m_n = o_n < stop if MASKED else o_n >= 0
    b_s = tl.dot(b_qr, load_tile(p_rope, m_n, 0, R, DR).T, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
    if CHUNK:
        b_s = dot_rows(b_s, p_q, m_m, p_key, m_n, dn, DN, CHUNK)
    else:
        b_s = tl.dot(b_q0, load_tile(p_key, m_n, 0, N0, DN).T, b_s, input_precision="ieee")
        if N1:
            b_s = tl.dot(b_q1, load_tile(p_key, m_n, N0, N1, DN).T, b_s, input_precision="ieee")
    b_s *= scale
    if MASKED:
        b_s = tl.where(o_n[None, :] < limit[:, None], b_s, float("-inf"))
    b_p, b_factor, b_m, b_l = softmax_step(b_s, b_m, b_l)
    b_v = load_tile(p_value, m_n, 0, V0, DV)  # [BLOCK_N, V0]
    b_p = b_p.to(b_v.dtype)
    b_o0 = tl.dot(b_p, b_v, b_o0 * b_factor[:, None], input_precision="ieee")
    if V1:
        b_v1 = load_tile(p_value, m_n, V0, V1, DV)
        b_o1 = tl.dot(b_p, b_v1, b_o1 * b_factor[:, None], input_precision="ieee")
    return b_o0, b_o1, b_m, b_l


@triton.jit(do_not_specialize=["begin", "end", "total", "new", "heads", "dn"])
def _mla_prefill_kernel(
    p_q, p_q_rope, p_key, p_value, p_k_rope, p_lens, p_state, p_out, p_lse, scale, begin, end, total, new, heads, dn,
    q_b, q_t, q_h, q_rope_b, q_rope_t, q_rope_h, key_b, key_s, key_h, k_rope_b, k_rope_s,
    DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, R: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    CAUSAL: tl.constexpr, OPENS: tl.constexpr, CLOSES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one head against the keys from `begin` to `end`; p_key and p_value start at `begin`.

    The first segment of keys OPENS the softmax, the last CLOSES it; in between the normalised output is float32.
    """
    # the last queries see the most keys, so they start first
    i_first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    i_head, i_batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_m, o_n = i_first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_m = o_m < new
    length = total
    if p_lens is not None:
        length = tl.load(p_lens + i_batch).to(tl.int32)
    stop = tl.minimum(length, end)
    clear = stop
    limit = tl.where(m_m, stop, 0)
    if CAUSAL:
        seen = length - new + 1
        clear = tl.minimum(stop, seen + i_first)
        stop = tl.minimum(stop, seen + tl.minimum(i_first + BLOCK_M, new) - 1)
        limit = tl.where(m_m, tl.minimum(seen + o_m, stop), 0)
    clear = begin + tl.maximum(clear - begin, 0) // BLOCK_N * BLOCK_N

    p_q += i_batch * q_b + i_head * q_h + o_m.to(tl.int64) * q_t
    b_q0 = load_tile(p_q, m_m, 0, 16 if CHUNK else N0, DN)  # [BLOCK_M, N0]
    b_q1 = b_q0
    if N1 and not CHUNK:
        b_q1 = load_tile(p_q, m_m, N0, N1, DN)
    p_row = p_q_rope + i_batch * q_rope_b + i_head * q_rope_h + o_m.to(tl.int64) * q_rope_t
    b_qr = load_tile(p_row, m_m, 0, R, DR)  # [BLOCK_M, R]
    p_key += i_batch * key_b + i_head * key_h
    p_value += i_batch * key_b + i_head * key_h
    p_k_rope += i_batch * k_rope_b

    o_row = (i_batch * new + o_m) * heads + i_head
    p_stat = p_lse + (i_batch * heads + i_head) * new + o_m
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_o0 = tl.zeros([BLOCK_M, V0], tl.float32)
    b_o1 = tl.zeros([BLOCK_M, V1 if V1 else 16], tl.float32)
    if not OPENS:
        b_m = tl.load(p_stat, mask=m_m, other=float("-inf")) * 1.4426950408889634
        b_l = tl.where(b_m == float("-inf"), 0.0, 1.0)
        b_o0 = load_tile(p_state + o_row * DV, m_m, 0, V0, DV)
        if V1:
            b_o1 = load_tile(p_state + o_row * DV, m_m, V0, V1, DV)
    for first in range(begin, clear, BLOCK_N):
        o_tile = tl.cast(first, tl.int64)
        b_o0, b_o1, b_m, b_l = _attend(
            p_q, m_m, b_q0, b_q1, b_qr, p_key + (o_tile - begin) * key_s + o_n * key_s,
            p_value + (o_tile - begin) * key_s + o_n * key_s, p_k_rope + o_tile * k_rope_s + o_n * k_rope_s,
            first, stop, limit, scale, dn, b_o0, b_o1, b_m, b_l, DN, DR, DV, N0, N1, R, V0, V1, BLOCK_N, CHUNK,
            False,
        )  # fmt: skip
    for first in range(clear, stop, BLOCK_N):
        o_tile = tl.cast(first, tl.int64)
        b_o0, b_o1, b_m, b_l = _attend(
            p_q, m_m, b_q0, b_q1, b_qr, p_key + (o_tile - begin) * key_s + o_n * key_s,
            p_value + (o_tile - begin) * key_s + o_n * key_s, p_k_rope + o_tile * k_rope_s + o_n * k_rope_s,
            first, stop, limit, scale, dn, b_o0, b_o1, b_m, b_l, DN, DR, DV, N0, N1, R, V0, V1, BLOCK_N, CHUNK,
            True,
        )  # fmt: skip

    tl.store(p_stat, b_m * 0.6931471805599453 + tl.log(b_l), mask=m_m)
    b_scale = (1.0 / tl.where(b_l == 0.0, 1.0, b_l))[:, None]
    p_row = (p_out if CLOSES else p_state) + o_row * DV
    store_tile(p_row, b_o0 * b_scale, m_m, 0, V0, DV)
    if V1:
        store_tile(p_row, b_o1 * b_scale, m_m, V0, V1, DV)


def mla_decompressed(call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, T, H, dv) in q_nope's dtype, lse (B, H, T) float32; keys and values are rebuilt by matrix products."""
    q_nope, q_rope, latent, k_rope = call.q_nope, call.q_rope, call.latent, call.k_rope
    w_uk, w_uv, seq_lens = call.w_uk, call.w_uv, call.seq_lens
    if call.block_table is not None:
        latent, k_rope = gather_pages(latent, k_rope, seq_lens, call.block_table)
    batch, new, heads, dn = q_nope.shape
    total, dv, dr = latent.shape[1], w_uv.shape[1], k_rope.shape[2]
    weight = joint_weight(w_uk, w_uv)
    device = q_nope.device
    out = torch.empty((batch, new, heads, dv), dtype=q_nope.dtype, device=device)
    lse = torch.empty((batch, heads, new), dtype=torch.float32, device=device)
    chosen = config("mla_prefill", target_of(q_nope), size=q_nope.element_size(), new=new, width=dn + dr)
    tile = chosen.constexprs["BLOCK_N"]
    row_bytes = max(batch * heads * (dn + dv) * latent.element_size(), 1)
    segment = max(WORKSPACE // row_bytes // tile, 1) * tile
    segments = max(triton.cdiv(total, segment), 1)
    state = None
    if segments > 1:
        state = torch.empty((batch, new, heads, dv), dtype=torch.float32, device=device)
    grid = (triton.cdiv(new, chosen.constexprs["BLOCK_M"]), heads, batch)
    (n0, n1), (v0, v1) = pieces(dn), pieces(dv)
    for i in range(segments):
        begin, end = i * segment, min(i * segment + segment, total)
        both = product(latent[:, begin:end], weight).view(batch, end - begin, heads, dn + dv)
        launch(
            _mla_prefill_kernel, grid, q_nope, q_rope, both, both[..., dn:], k_rope, seq_lens, state, out, lse,
            call.scale * LOG2E, begin, end, total, new, heads, dn, *q_nope.stride()[:3], *q_rope.stride()[:3],
            *both.stride()[:3], k_rope.stride(0), k_rope.stride(1), DN=dn, DR=dr, DV=dv, N0=n0, N1=n1,
            R=rope_piece(dr), V0=v0, V1=v1, CAUSAL=call.causal, OPENS=i == 0, CLOSES=i == segments - 1,
            **chosen.constexprs, options=chosen.options,
        )  # fmt: skip
    return out, lse
