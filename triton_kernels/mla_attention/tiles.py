"""Shared parts of the attention kernels: widths as powers of two, rows of a plain or paged cache, the softmax."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2E = 1.4426950408889634
# the smallest tile side that every matrix instruction supports
LEAST = 16
# more splits cost more in the combination than they save in the attention
MAX_SPLITS = 64


def pieces(width: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that cover `width` with the least padding: 384 is 256 + 128."""
    one = max(triton.next_power_of_2(width), LEAST)
    if one in (LEAST, width):
        return one, 0
    rest = max(triton.next_power_of_2(width - one // 2), LEAST)
    return (one // 2, rest) if one // 2 + rest < one else (one, 0)


def rope_piece(width: int) -> int:
    """The power of two that covers the rope part."""
    return max(triton.next_power_of_2(width), LEAST)


@triton.jit
def load_tile(p_row, m_row, FIRST: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr):
    """Columns FIRST to FIRST + PIECE of rows that start at p_row [ROWS]; zero where m_row is false and past WIDTH."""
    o_d = FIRST + tl.arange(0, PIECE)
    p_tile = p_row[:, None] + o_d[None, :]  # [ROWS, PIECE]
    m_tile = m_row[:, None]
    if FIRST + PIECE > WIDTH:
        m_tile = m_tile & (o_d < WIDTH)[None, :]
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def store_tile(p_row, b_tile, m_row, FIRST: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr):
    """The inverse of load_tile; b_tile is cast to what p_row points to."""
    o_d = FIRST + tl.arange(0, PIECE)
    m_tile = m_row[:, None]
    if FIRST + PIECE > WIDTH:
        m_tile = m_tile & (o_d < WIDTH)[None, :]
    tl.store(p_row[:, None] + o_d[None, :], b_tile.to(p_row.dtype.element_ty), mask=m_tile)


@triton.jit
def dot_rows(b_s, p_a, m_a, p_b, m_b, width, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """b_s [M, N] plus the products of rows p_a [M] with rows p_b [N], both read chunk by chunk.

    For operands that do not fit the registers. `width` is WIDTH as a run-time value, which keeps the compiler from
    unrolling the loop and loading all chunks at once.
    """
    for c in tl.range(0, width, CHUNK):
        o_c = c + tl.arange(0, CHUNK)
        m_left, m_right = m_a[:, None], m_b[:, None]
        if WIDTH % CHUNK:
            m_left, m_right = m_left & (o_c < WIDTH)[None, :], m_right & (o_c < WIDTH)[None, :]
        b_a = tl.load(p_a[:, None] + o_c[None, :], mask=m_left, other=0.0)  # [M, CHUNK]
        b_b = tl.load(p_b[:, None] + o_c[None, :], mask=m_right, other=0.0)  # [N, CHUNK]
        b_s = tl.dot(b_a, b_b.T, b_s, input_precision="ieee")
    return b_s


@triton.jit
def key_rows(p_cache, p_pages, start, o_n, m_n, page_stride, row_stride, PAGE: tl.constexpr):
    """Pointers to the rows of keys start + o_n: of a sequence that begins at p_cache, or through its list of pages.

    The offset of the tile has 64 bits; offsets inside a tile need only 32.
    """
    if PAGE:
        o_key = start + o_n
        i_page = tl.load(p_pages + o_key // PAGE, mask=m_n, other=0).to(tl.int64)
        p_row = p_cache + i_page * page_stride + (o_key % PAGE) * row_stride
    else:
        p_row = p_cache + tl.cast(start, tl.int64) * row_stride + o_n * row_stride
    return p_row


@triton.jit
def softmax_step(b_s, m_prev, l_prev):
    """One step of the running softmax in base 2: weights [M, N], factor for earlier sums, new max and sum.

    A row whose maximum is still -inf gets weights 0, not NaN.
    """
    m_next = tl.maximum(m_prev, tl.max(b_s, 1))
    m_safe = tl.where(m_next == float("-inf"), 0.0, m_next)
    b_p = tl.math.exp2(b_s - m_safe[:, None])
    b_factor = tl.math.exp2(m_prev - m_safe)
    return b_p, b_factor, m_next, l_prev * b_factor + tl.sum(b_p, 1)


def sequence_strides(x: torch.Tensor) -> tuple[int, int]:
    """Strides from one sequence (or page) and from one row to the next."""
    return x.stride(0), x.stride(1)


def split_count(blocks: int, keys: int, processors: int, least_keys: int) -> int:
    """The number of splits of the keys: enough programs to fill the processors, with `least_keys` or more per split.

    Depends on shapes only, so that a sequence's result does not depend on the lengths of others in the batch.
    """
    return max(1, min(processors // max(blocks, 1), triton.cdiv(keys, least_keys), MAX_SPLITS))
