"""out[n] = the weighted sum of its k packed rows. Each row has one reader, which gathers in slot order.

Counting: k + 1 rows of D are read with shared experts (k without) and one written, 16 bits per element: 8192 rows of
4 + 1 in mythos_1b are 201 MB, 47 us at 4.3 TB/s. The loads of all k rows are in flight together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.configs import config
from openmythos.triton_kernels.launch import launch, target_of
from openmythos.triton_kernels.moe.sort import Sorted

# partial sums of a weight's gradient that are loaded together
_PARTIALS = tl.constexpr(32)


@triton.jit(do_not_specialize=["slots", "partials"])
def _moe_gather_sum_kernel(
    p_y,
    p_shared,
    p_positions,
    p_weights,
    p_partial,
    p_out,
    p_grad_weights,
    columns,
    slots,
    partials,
    weights_stride,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[n] = sum_j weights[n, j] * y[position of slot (n, j)] + shared[n]; NaN for a slot without an expert."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    o_d = i_block * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < columns
    b_sum = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(K):
        i_position = tl.load(p_positions + i_row * K + j).to(tl.int64)
        b_y = tl.load(p_y + i_position * columns + o_d, mask=m_d & (i_position >= 0), other=float("nan")).to(
            tl.float32
        )
        if p_weights is not None:
            b_y *= tl.load(p_weights + i_row * weights_stride + j).to(tl.float32)
        b_sum += b_y
        if (p_grad_weights is not None) and (i_block == 0):
            b_part = tl.zeros([_PARTIALS], tl.float32)
            for i_first in range(0, partials, _PARTIALS):
                o_p = i_first + tl.arange(0, _PARTIALS)
                p_part = p_partial + o_p.to(tl.int64) * slots + i_position
                b_part += tl.load(p_part, mask=(o_p < partials) & (i_position >= 0), other=0.0)
            i_grad = tl.where(i_position >= 0, tl.sum(b_part), float("nan"))
            tl.store(p_grad_weights + i_row * K + j, i_grad.to(p_grad_weights.dtype.element_ty))
    if p_shared is not None:
        b_sum += tl.load(p_shared + i_row * columns + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + i_row * columns + o_d, b_sum.to(p_out.dtype.element_ty), mask=m_d)


def gather_sum(
    y: torch.Tensor,
    found: Sorted,
    out: torch.Tensor,
    *,
    k: int,
    weights: torch.Tensor | None = None,
    shared: torch.Tensor | None = None,
    partial: torch.Tensor | None = None,
    grad_weights: torch.Tensor | None = None,
) -> None:
    """out[n] = shared[n] + the weighted sum of its slots' rows of y; grad_weights[n, j] = its partials added up."""
    rows, columns = out.shape
    chosen = config("moe_gather_sum", target_of(out), columns=columns)
    partials = 0 if partial is None else partial.shape[0]
    launch(
        _moe_gather_sum_kernel,
        (rows, triton.cdiv(columns, chosen.constexprs["BLOCK"])),
        *(y, shared, found.positions, weights, partial, out, grad_weights, columns, found.slots.numel(), partials),
        *(0 if weights is None else weights.stride(0),),
        options=chosen.options,
        K=k,
        **chosen.constexprs,
    )
