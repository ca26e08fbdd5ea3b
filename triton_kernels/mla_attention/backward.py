"""Backward of the decompressed multi-head latent attention, without atomics: two runs are bitwise equal.

One kernel runs over blocks of queries (dq, and each row's sum of grad * out), one over blocks of keys (dK, dV). Both
recompute the probabilities from the saved logsumexp. The rope key's gradient is written per head and then summed; the
gradients of the latent and of both projections are matrix products with dK and dV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.mla_attention.decompress import joint_weight, product

if TYPE_CHECKING:
    from openmythos.ops.mla_attention import MlaAttentionBackward
from openmythos.triton_kernels.mla_attention.tiles import dot_rows, load_tile, pieces, rope_piece, store_tile


@triton.jit
def _two_pieces(
    b_s, p_a, m_a, b_a0, b_a1, p_b, m_b, b_b0, b_b1, width,
    WIDTH: tl.constexpr, SECOND: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """b_s [M, N] plus the products of rows a with rows b, from the pieces in registers or reread in chunks."""
    if CHUNK:
        b_s = dot_rows(b_s, p_a, m_a, p_b, m_b, width, WIDTH, CHUNK)
    else:
        b_s = tl.dot(b_a0, b_b0.T, b_s, input_precision="ieee")
        if SECOND:
            b_s = tl.dot(b_a1, b_b1.T, b_s, input_precision="ieee")
    return b_s


@triton.jit(do_not_specialize=["total", "new", "heads", "dn", "dv"])
def _mla_backward_queries_kernel(
    p_grad, p_q, p_q_rope, p_key, p_value, p_k_rope, p_lens, p_out, p_lse, p_delta, p_dq, p_dq_rope,
    scale, total, new, heads, dn, dv, grad_b, grad_t, grad_h, q_b, q_t, q_h, q_rope_b, q_rope_t, q_rope_h,
    key_b, key_s, key_h, k_rope_b, k_rope_s,
    DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, R: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK_M queries of one head, and delta = sum(grad * out) of their rows."""
    i_first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    i_head, i_batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_m, o_n = i_first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_m = o_m < new
    o_long = o_m.to(tl.int64)
    length = total
    if p_lens is not None:
        length = tl.load(p_lens + i_batch).to(tl.int32)
    stop = length
    limit = tl.where(m_m, length, 0)
    if CAUSAL:
        seen = length - new + 1
        stop = tl.minimum(length, seen + tl.minimum(i_first + BLOCK_M, new) - 1)
        limit = tl.where(m_m, seen + o_m, 0)

    p_q += i_batch * q_b + i_head * q_h + o_long * q_t  # [BLOCK_M]
    p_grad += i_batch * grad_b + i_head * grad_h + o_long * grad_t
    p_q_rope += i_batch * q_rope_b + i_head * q_rope_h + o_long * q_rope_t
    o_row = (i_batch * new + o_m) * heads + i_head
    o_stat = (i_batch * heads + i_head) * new + o_m
    b_qr = load_tile(p_q_rope, m_m, 0, R, DR)  # [BLOCK_M, R]
    b_g0 = load_tile(p_grad, m_m, 0, V0, DV)  # [BLOCK_M, V0]
    b_g1 = b_g0
    b_delta = tl.sum(b_g0.to(tl.float32) * load_tile(p_out + o_row * DV, m_m, 0, V0, DV).to(tl.float32), 1)
    if V1:
        b_g1 = load_tile(p_grad, m_m, V0, V1, DV)
        b_delta += tl.sum(b_g1.to(tl.float32) * load_tile(p_out + o_row * DV, m_m, V0, V1, DV).to(tl.float32), 1)
    tl.store(p_delta + o_stat, b_delta, mask=m_m)
    b_q0 = load_tile(p_q, m_m, 0, 16 if CHUNK else N0, DN)  # [BLOCK_M, N0]
    b_q1 = b_q0
    if N1 and not CHUNK:
        b_q1 = load_tile(p_q, m_m, N0, N1, DN)
    b_lse = tl.load(p_lse + o_stat, mask=m_m, other=0.0) * 1.4426950408889634
    factor = scale * 1.4426950408889634
    p_key += i_batch * key_b + i_head * key_h
    p_value += i_batch * key_b + i_head * key_h
    p_k_rope += i_batch * k_rope_b

    b_dq0 = tl.zeros([BLOCK_M, N0], tl.float32)
    b_dq1 = tl.zeros([BLOCK_M, N1 if N1 else 16], tl.float32)
    b_dqr = tl.zeros([BLOCK_M, R], tl.float32)
    for first in range(0, stop, BLOCK_N):
        m_n = first + o_n < length
        o_tile = tl.cast(first, tl.int64)
        p_k = p_key + o_tile * key_s + o_n * key_s  # [BLOCK_N]
        p_v = p_value + o_tile * key_s + o_n * key_s
        b_k0 = load_tile(p_k, m_n, 0, N0, DN)  # [BLOCK_N, N0]
        b_k1 = b_k0
        if N1:
            b_k1 = load_tile(p_k, m_n, N0, N1, DN)
        b_kr = load_tile(p_k_rope + o_tile * k_rope_s + o_n * k_rope_s, m_n, 0, R, DR)  # [BLOCK_N, R]
        b_v0 = load_tile(p_v, m_n, 0, 16 if CHUNK else V0, DV)  # [BLOCK_N, V0]
        b_v1 = b_v0
        if V1 and not CHUNK:
            b_v1 = load_tile(p_v, m_n, V0, V1, DV)
        b_s = tl.dot(b_qr, b_kr.T, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        b_s = _two_pieces(b_s, p_q, m_m, b_q0, b_q1, p_k, m_n, b_k0, b_k1, dn, DN, N1, CHUNK)
        visible = (first + o_n)[None, :] < limit[:, None]
        b_p = tl.where(visible, tl.math.exp2(b_s * factor - b_lse[:, None]), 0.0)
        b_dp = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        b_dp = _two_pieces(b_dp, p_grad, m_m, b_g0, b_g1, p_v, m_n, b_v0, b_v1, dv, DV, V1, CHUNK)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k0.dtype)
        b_dq0 = tl.dot(b_ds, b_k0, b_dq0, input_precision="ieee")
        if N1:
            b_dq1 = tl.dot(b_ds, b_k1, b_dq1, input_precision="ieee")
        b_dqr = tl.dot(b_ds, b_kr, b_dqr, input_precision="ieee")

    store_tile(p_dq + o_row * DN, b_dq0 * scale, m_m, 0, N0, DN)
    if N1:
        store_tile(p_dq + o_row * DN, b_dq1 * scale, m_m, N0, N1, DN)
    store_tile(p_dq_rope + o_row * DR, b_dqr * scale, m_m, 0, R, DR)


@triton.jit(do_not_specialize=["total", "new", "heads", "dn", "dv"])
def _mla_backward_keys_kernel(
    p_grad, p_q, p_q_rope, p_key, p_value, p_k_rope, p_lens, p_lse, p_delta, p_dkey, p_dvalue, p_dk_rope,
    scale, total, new, heads, dn, dv, grad_b, grad_t, grad_h, q_b, q_t, q_h, q_rope_b, q_rope_t, q_rope_h,
    key_b, key_s, key_h, k_rope_b, k_rope_s,
    DN: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, R: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dK and dV of BLOCK_N keys of one head, and its part of the rope key's gradient; scores are transposed."""
    i_first = tl.program_id(0) * BLOCK_N
    i_head, i_batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_n, o_m = i_first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    o_long = o_n.to(tl.int64)
    length = total
    if p_lens is not None:
        length = tl.load(p_lens + i_batch).to(tl.int32)
    m_n = o_n < length
    start, stop = 0, new
    if CAUSAL:
        start = tl.maximum(i_first - (length - new), 0) // BLOCK_M * BLOCK_M
    if i_first >= length:
        stop = 0

    p_k = p_key + i_batch * key_b + i_head * key_h + o_long * key_s  # [BLOCK_N]
    p_v = p_value + i_batch * key_b + i_head * key_h + o_long * key_s
    b_kr = load_tile(p_k_rope + i_batch * k_rope_b + o_long * k_rope_s, m_n, 0, R, DR)  # [BLOCK_N, R]
    b_k0 = load_tile(p_k, m_n, 0, 16 if CHUNK else N0, DN)
    b_v0 = load_tile(p_v, m_n, 0, 16 if CHUNK else V0, DV)
    b_k1 = b_k0
    b_v1 = b_v0
    if N1 and not CHUNK:
        b_k1 = load_tile(p_k, m_n, N0, N1, DN)
    if V1 and not CHUNK:
        b_v1 = load_tile(p_v, m_n, V0, V1, DV)
    p_q += i_batch * q_b + i_head * q_h
    p_grad += i_batch * grad_b + i_head * grad_h
    p_q_rope += i_batch * q_rope_b + i_head * q_rope_h
    o_stat = (i_batch * heads + i_head) * new
    factor = scale * 1.4426950408889634

    b_dk0 = tl.zeros([BLOCK_N, N0], tl.float32)
    b_dk1 = tl.zeros([BLOCK_N, N1 if N1 else 16], tl.float32)
    b_dkr = tl.zeros([BLOCK_N, R], tl.float32)
    b_dv0 = tl.zeros([BLOCK_N, V0], tl.float32)
    b_dv1 = tl.zeros([BLOCK_N, V1 if V1 else 16], tl.float32)
    for first in range(start, stop, BLOCK_M):
        m_m = first + o_m < new
        o_tile = tl.cast(first, tl.int64)
        p_row = p_q + o_tile * q_t + o_m * q_t  # [BLOCK_M]
        p_outer = p_grad + o_tile * grad_t + o_m * grad_t
        b_q0 = load_tile(p_row, m_m, 0, N0, DN)  # [BLOCK_M, N0]
        b_q1 = b_q0
        if N1:
            b_q1 = load_tile(p_row, m_m, N0, N1, DN)
        b_qr = load_tile(p_q_rope + o_tile * q_rope_t + o_m * q_rope_t, m_m, 0, R, DR)
        b_g0 = load_tile(p_outer, m_m, 0, V0, DV)  # [BLOCK_M, V0]
        b_g1 = b_g0
        if V1:
            b_g1 = load_tile(p_outer, m_m, V0, V1, DV)
        # a row past the last query gets probability exp2(-inf)
        b_lse = tl.load(p_lse + o_stat + first + o_m, mask=m_m, other=float("inf")) * 1.4426950408889634
        b_delta = tl.load(p_delta + o_stat + first + o_m, mask=m_m, other=0.0)
        b_s = tl.dot(b_kr, b_qr.T, input_precision="ieee")  # [BLOCK_N, BLOCK_M]
        b_s = _two_pieces(b_s, p_k, m_n, b_k0, b_k1, p_row, m_m, b_q0, b_q1, dn, DN, N1, CHUNK)
        visible = m_n[:, None]
        if CAUSAL:
            visible = (o_n[:, None] - (length - new)) <= (first + o_m)[None, :]
            visible = visible & m_n[:, None]
        b_p = tl.where(visible, tl.math.exp2(b_s * factor - b_lse[None, :]), 0.0)
        b_half = b_p.to(b_g0.dtype)
        b_dv0 = tl.dot(b_half, b_g0, b_dv0, input_precision="ieee")
        if V1:
            b_dv1 = tl.dot(b_half, b_g1, b_dv1, input_precision="ieee")
        b_dp = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        b_dp = _two_pieces(b_dp, p_v, m_n, b_v0, b_v1, p_outer, m_m, b_g0, b_g1, dv, DV, V1, CHUNK)
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q0.dtype)
        b_dk0 = tl.dot(b_ds, b_q0, b_dk0, input_precision="ieee")
        if N1:
            b_dk1 = tl.dot(b_ds, b_q1, b_dk1, input_precision="ieee")
        b_dkr = tl.dot(b_ds, b_qr, b_dkr, input_precision="ieee")

    m_out = o_n < total
    o_row = (i_batch * total + o_n) * heads + i_head
    p_dk, p_dv = p_dkey + o_row * (DN + DV), p_dvalue + o_row * (DN + DV)
    store_tile(p_dk, b_dk0 * scale, m_out, 0, N0, DN)
    if N1:
        store_tile(p_dk, b_dk1 * scale, m_out, N0, N1, DN)
    store_tile(p_dv, b_dv0, m_out, 0, V0, DV)
    if V1:
        store_tile(p_dv, b_dv1, m_out, V0, V1, DV)
    store_tile(p_dk_rope + o_row * DR, b_dkr * scale, m_out, 0, R, DR)


def mla_attention_backward(call: MlaAttentionBackward) -> tuple[torch.Tensor, ...]:
    """Gradients of (q_nope, q_rope, latent, k_rope, w_uk, w_uv), from out and lse of the forward.

    Shapes as in openmythos.ops.mla_attention; the gradients are contiguous, in the dtypes of their tensors.
    """
    grad, q_nope, q_rope, latent, k_rope = call.grad, call.q_nope, call.q_rope, call.latent, call.k_rope
    w_uk, w_uv, seq_lens = call.w_uk, call.w_uv, call.seq_lens
    batch, new, heads, dn = q_nope.shape
    total, dc, dv, dr = latent.shape[1], latent.shape[2], w_uv.shape[1], k_rope.shape[2]
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    lse = call.lse.contiguous()
    if seq_lens is not None:
        # rows past a sequence's length may hold anything, and 0 times that is not always 0
        inside = torch.arange(total, device=latent.device)[None, :] < seq_lens[:, None]
        latent = torch.where(inside[..., None], latent, 0)
    weight = joint_weight(w_uk, w_uv)
    both = product(latent, weight).view(batch, total, heads, dn + dv)

    def empty(*shape: int, dtype: torch.dtype = latent.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=latent.device)

    dq, dq_rope = empty(*q_nope.shape), empty(*q_rope.shape)
    delta = empty(batch, heads, new, dtype=torch.float32)
    dboth, dk_heads = empty(batch, total, heads, dn + dv), empty(batch, total, heads, dr)
    (n0, n1), (v0, v1) = pieces(dn), pieces(dv)
    shared = {"DN": dn, "DR": dr, "DV": dv, "N0": n0, "N1": n1, "R": rope_piece(dr), "V0": v0, "V1": v1}
    shared["CAUSAL"] = call.causal
    strides = (
        *grad.stride()[:3], *q_nope.stride()[:3], *q_rope.stride()[:3], *both.stride()[:3], *k_rope.stride()[:2],
    )  # fmt: skip
    inputs = (grad, q_nope, q_rope, both, both[..., dn:], k_rope, seq_lens)
    sizes = {"size": latent.element_size(), "width": dn + dr, "full": int(not call.causal)}
    queries = config("mla_backward_queries", target_of(latent), **sizes)
    launch(
        _mla_backward_queries_kernel, (triton.cdiv(new, queries.constexprs["BLOCK_M"]), heads, batch), *inputs,
        call.out.contiguous(), lse, delta, dq, dq_rope, call.scale, total, new, heads, dn, dv, *strides, **shared,
        **queries.constexprs, options=queries.options,
    )  # fmt: skip
    keys = config("mla_backward_keys", target_of(latent), **sizes)
    launch(
        _mla_backward_keys_kernel, (triton.cdiv(total, keys.constexprs["BLOCK_N"]), heads, batch), *inputs, lse, delta,
        dboth, dboth[..., dn:], dk_heads, call.scale, total, new, heads, dn, dv, *strides, **shared, **keys.constexprs,
        options=keys.options,
    )  # fmt: skip
    rows = dboth.view(batch * total, heads * (dn + dv))
    dweight = torch.mm(rows.T, latent.reshape(batch * total, dc)).view(heads, dn + dv, dc)
    dlatent = torch.mm(rows, weight).view(batch, total, dc)
    return dq, dq_rope, dlatent, dk_heads.sum(2), dweight[:, :dn].contiguous(), dweight[:, dn:].contiguous()
