"""rope: rotary embedding on interleaved pairs; rope_append_: the new tokens' cache rows, normalised and rotated.

A row is loaded in memory order and split into pairs in registers: every tensor is read and written once, in 16 bits 4
bytes per element, and the table of angles comes from the caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of

if TYPE_CHECKING:
    from openmythos.ops.rope import Rope, RopeAppend


@triton.jit
def _rotated(b_x, b_table, INVERSE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(x0 + i x1) * (cos + i sin) of pairs that lie side by side, [ROWS, BLOCK] in float32."""
    b_even, b_odd = tl.split(tl.reshape(b_x, [ROWS, BLOCK // 2, 2]))
    b_cos, b_sin = tl.split(tl.reshape(b_table, [ROWS, BLOCK // 2, 2]))
    if INVERSE:
        b_sin = -b_sin
    b_out = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return tl.reshape(b_out, [ROWS, BLOCK])


@triton.jit(do_not_specialize=["n_rows", "tokens"])
def _rope_kernel(
    p_x,
    p_cos_sin,
    p_out,
    n_rows,
    tokens,
    heads,
    x_batch_stride,
    x_token_stride,
    x_head_stride,
    WIDTH: tl.constexpr,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    o_d = tl.arange(0, BLOCK)[None, :]
    mask = (o_row < n_rows) & (o_d < WIDTH)
    o_token = o_row // heads
    o_batch = o_token // tokens
    o_head, o_token = (o_row % heads).to(tl.int64), (o_token % tokens).to(tl.int64)
    o_x = o_batch.to(tl.int64) * x_batch_stride + o_token * x_token_stride + o_head * x_head_stride
    b_x = tl.load(p_x + o_x + o_d, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    b_table = tl.load(p_cos_sin + o_token * WIDTH + o_d, mask=mask, other=0.0)
    b_out = _rotated(b_x, b_table, INVERSE, ROWS, BLOCK)
    tl.store(p_out + o_row.to(tl.int64) * WIDTH + o_d, b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "tokens"])
def _rope_append_kernel(
    p_latent,
    p_key,
    p_weight,
    p_cos_sin,
    p_position,
    p_rows,
    p_key_rows,
    n_rows,
    tokens,
    eps,
    batch_stride,
    token_stride,
    position_stride,
    rows_batch_stride,
    rows_token_stride,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    PLACED: tl.constexpr,
    LATENT_BLOCK: tl.constexpr,
    ROPE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    o_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    m_row = o_row < n_rows
    o_batch, o_token = (o_row // tokens).to(tl.int64), (o_row % tokens).to(tl.int64)
    o_x = o_batch * batch_stride + o_token * token_stride
    if PLACED:
        o_token += tl.load(p_position + o_batch * position_stride, mask=m_row, other=0).to(tl.int64)
    o_cache = o_batch * rows_batch_stride + o_token * rows_token_stride

    o_d = tl.arange(0, LATENT_BLOCK)[None, :]
    mask = m_row & (o_d < LATENT)
    b_x = tl.load(p_latent + o_x + o_d, mask=mask, other=0.0).to(tl.float32)  # [ROWS, LATENT_BLOCK]
    b_weight = tl.load(p_weight + o_d, mask=o_d < LATENT, other=0.0).to(tl.float32)
    b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=1, keep_dims=True) / LATENT + eps) * b_weight
    tl.store(p_rows + o_cache + o_d, b_normed.to(p_rows.dtype.element_ty), mask=mask)

    o_r = tl.arange(0, ROPE_BLOCK)[None, :]
    mask = m_row & (o_r < ROPE)
    b_key = tl.load(p_key + o_x + o_r, mask=mask, other=0.0).to(tl.float32)  # [ROWS, ROPE_BLOCK]
    b_table = tl.load(p_cos_sin + o_token * ROPE + o_r, mask=mask, other=0.0)
    b_turned = _rotated(b_key, b_table, False, ROWS, ROPE_BLOCK)
    tl.store(p_key_rows + o_cache + o_r, b_turned.to(p_key_rows.dtype.element_ty), mask=mask)


def rope(call: Rope) -> torch.Tensor:
    """x (B, T, H, d) with a last stride of 1, cos_sin (T, d/2, 2) float32 -> (B, T, H, d) in x's dtype, contiguous."""
    x = call.x
    batch, tokens, heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = config("rope", target_of(x), width=width)
    n_rows = batch * tokens * heads
    launch(
        _rope_kernel,
        (triton.cdiv(n_rows, chosen.constexprs["ROWS"]),),
        *(x, call.cos_sin.contiguous(), out, n_rows, tokens, heads, *x.stride()[:3]),
        WIDTH=width,
        INVERSE=call.inverse,
        BLOCK=max(triton.next_power_of_2(width), 2),
        **chosen.constexprs,
        options=chosen.options,
    )
    return out


def rope_append_(call: RopeAppend) -> None:
    """Write new rows of the cache; the last strides of down and cache_rows are 1."""
    down, cache_rows, position = call.down, call.cache_rows, call.position
    batch, tokens, width = down.shape
    latent = call.weight.shape[0]
    chosen = config("rope_append", target_of(down), width=latent)
    n_rows = batch * tokens
    launch(
        _rope_append_kernel,
        (triton.cdiv(n_rows, chosen.constexprs["ROWS"]),),
        *(down, down[..., latent:], call.weight, call.cos_sin.contiguous(), position),
        *(cache_rows, cache_rows[..., latent:]),
        *(n_rows, tokens, call.eps, *down.stride()[:2]),
        *(0 if position is None else position.stride(0), *cache_rows.stride()[:2]),
        LATENT=latent,
        ROPE=width - latent,
        PLACED=position is not None,
        LATENT_BLOCK=triton.next_power_of_2(latent),
        ROPE_BLOCK=max(triton.next_power_of_2(width - latent), 2),
        **chosen.constexprs,
        options=chosen.options,
    )
