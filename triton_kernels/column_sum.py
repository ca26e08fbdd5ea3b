"""Sums over programs in a fixed order: the second step of a gradient that each program first summed over its rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from openmythos.triton_kernels.launch import launch

ROWS, COLUMNS = 32, 64


@triton.jit(do_not_specialize=["n_rows"])
def _column_sum_kernel(p_parts, p_out, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    o_row = tl.arange(0, ROWS)
    o_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < n_columns
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_row in range(0, n_rows, ROWS):
        m_part = ((i_row + o_row) < n_rows)[:, None] & m_column[None, :]
        o_part = (i_row + o_row).to(tl.int64)[:, None] * n_columns + o_column[None, :]
        b_sum += tl.load(p_parts + o_part, mask=m_part, other=0.0)
    tl.store(p_out + o_column, tl.sum(b_sum, axis=0).to(p_out.dtype.element_ty), mask=m_column)


def column_sum(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """out[...] = sum over p of parts[p, ...]. parts (P, ...) float32, contiguous -> (...) in `dtype`."""
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    grid = (triton.cdiv(out.numel(), COLUMNS),)
    constexprs = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    launch(_column_sum_kernel, grid, parts, out, parts.shape[0], out.numel(), **constexprs, options={"num_warps": 4})
    return out
