"""rms_norm, rms_norm_add and the backward that both share."""

from __future__ import annotations

import torch

from openmythos.backends.triton.rows import DTYPES, dtype_reason, register_row, why_not

# Elements of a row that the kernel holds in registers.
MAX_WIDTH = 16384


def _supports(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> str | None:
    if x.shape[-1] > MAX_WIDTH:
        return f"{x.shape[-1]} columns: the kernel takes up to {MAX_WIDTH}"
    if dtype is not None and dtype not in DTYPES:
        return f"dtype {dtype}: the kernels are float32, bfloat16 and float16"
    return why_not(x, weight)


def _add_supports(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> str | None:
    return _supports(x, weight, eps, dtype) or why_not(residual)


def _backward_supports(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> str | None:
    return dtype_reason(grad) or why_not(x, weight)


register_row("rms_norm", "rms_norm.rms_norm", _supports)
register_row("rms_norm_add", "rms_norm.rms_norm_add", _add_supports)
register_row("rms_norm_backward", "rms_norm.rms_norm_backward", _backward_supports)
