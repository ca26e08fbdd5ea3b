"""Shared parts of the experts' kernels: the order of programs, chunks of shared experts, the loop over the depth."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scheduled(dense, routed, columns, GROUP: tl.constexpr, MIXED: tl.constexpr):
    """(whether this program's tile is of a shared expert, tile, column); tile is -1 for a surplus program.

    GROUP tiles go through all columns together, so that GROUP row tiles and the weights of a column stay in the cache.
    With MIXED, groups of both kinds are interleaved in proportion: routed tiles wait for weights while shared ones
    multiply. Otherwise the shared ones come first, since they take longer.
    """
    i_program = tl.program_id(0)
    i_group = i_program // (GROUP * columns)
    i_local = i_program % (GROUP * columns)
    dense_groups = tl.cdiv(dense, GROUP)
    if MIXED:
        groups = dense_groups + tl.cdiv(routed, GROUP)
        i_dense = i_group * dense_groups // groups
        is_dense = (i_group + 1) * dense_groups // groups > i_dense
    else:
        i_dense = tl.minimum(i_group, dense_groups)
        is_dense = i_group < dense_groups
    i_first = tl.where(is_dense, i_dense, i_group - i_dense) * GROUP
    size = tl.minimum(tl.where(is_dense, dense, routed) - i_first, GROUP)
    i_tile = i_first + i_local % size
    i_column = i_local // size
    return is_dense, tl.where(i_column < columns, i_tile, -1), i_column


@triton.jit
def picked(values, index):
    """values[index] of a tuple for a run-time index; pointers must have one element type and address width."""
    value = values[0]
    for s in tl.static_range(1, len(values)):
        value = tl.where(index == s, values[s], value)
    return value


@triton.jit
def shared_chunk(i_chunk, widths, chunk):
    """Shared experts side by side, cut into chunks of `chunk` hidden units, so that a chunk is like a routed expert.

    Returns (the expert, the chunk's first unit in it, units from there on, the chunk's first column among all).
    """
    i_expert = 0
    i_first = 0
    i_column = 0
    i_next = tl.cdiv(widths[0], chunk)
    column = widths[0]
    for s in tl.static_range(1, len(widths)):
        i_expert = tl.where(i_chunk >= i_next, s, i_expert)
        i_first = tl.where(i_chunk >= i_next, i_next, i_first)
        i_column = tl.where(i_chunk >= i_next, column, i_column)
        i_next += tl.cdiv(widths[s], chunk)
        column += widths[s]
    i_unit = (i_chunk - i_first) * chunk
    return i_expert, i_unit, picked(widths, i_expert) - i_unit, i_column + i_unit


@triton.jit
def swiglu(b_gate, b_up):
    """silu(gate) * up."""
    return b_gate * tl.sigmoid(b_gate) * b_up


@triton.jit
def multiplied(b_acc, p_a, p_b, depth, b_step, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """b_acc + A B over `depth`: p_a [M, BLOCK_K] and p_b [BLOCK_K, N] point to its start, B rows b_step apart."""
    o_k = tl.arange(0, BLOCK_K)
    for i_k in range(0, depth, BLOCK_K):
        if EVEN_K:
            b_a = tl.load(p_a)
            b_b = tl.load(p_b)
        else:
            m_k = o_k < depth - i_k
            b_a = tl.load(p_a, mask=m_k[None, :], other=0.0)
            b_b = tl.load(p_b, mask=m_k[:, None], other=0.0)
        b_acc = tl.dot(b_a, b_b, b_acc, input_precision="ieee")
        p_a += BLOCK_K
        p_b += BLOCK_K * b_step
    return b_acc
