"""The native GPU backend: CUDA and HIP C++ kernels of `openmythos_native`, in float32, bfloat16 and float16."""

from __future__ import annotations

import torch

from openmythos.backends.calls import loop_step, loop_step_, rms_norm, rms_norm_add
from openmythos.backends.library import gpu_missing
from openmythos.dispatch import register

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A row stays in one block's registers; see csrc/runtime/plans.h.
MAX_WIDTH, MAX_RANK, MAX_LOOP_DIM = 16384, 256, 8192
MAX_ROWS, MAX_SCALES = 2**31, 2**20


def _why_not(*tensors: torch.Tensor | None) -> str | None:
    """The reason that holds for every op: no code for the device, a dtype without a kernel, strided columns."""
    first = next(tensor for tensor in tensors if tensor is not None)
    reason = gpu_missing(first.device.index or 0)
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype}: the kernels are float32, bfloat16 and float16"
        if tensor.device != first.device:
            return f"tensors on {first.device} and {tensor.device}"
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return "a tensor's last dimension is not contiguous"
    return None


def _size_reason(x: torch.Tensor) -> str | None:
    width = x.shape[-1]
    if not 1 <= width <= MAX_WIDTH:
        return f"rows of {width} columns: the kernels hold 1 to {MAX_WIDTH}"
    rows = x.numel() // width
    return f"{rows} rows: one launch takes fewer than 2^31" if rows >= MAX_ROWS else None


def _norm_supports(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> str | None:
    if dtype is not None and dtype not in DTYPES:
        return f"dtype {dtype}: the kernels are float32, bfloat16 and float16"
    return _why_not(x, weight) or _size_reason(x)


def _norm_add_supports(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> str | None:
    return _norm_supports(x, weight, eps, dtype) or _why_not(x, residual)


def _step_supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    params, loop_dim = rest[:8], rest[-1]
    reason = _why_not(h, e, block_out, h_out) or _size_reason(h)
    if reason is not None:
        return reason
    if any(tensor is not None and tensor.dtype != torch.float32 for tensor in (h_out, cum_p, *params)):
        return "the state and the parameters have to be float32"
    rank, scales = params[2].shape[0], params[3].shape[0]
    if rank > MAX_RANK:
        return f"rank {rank}: the kernel takes up to {MAX_RANK}"
    if scales >= MAX_SCALES:
        return f"{scales} rows of lora_scale: the kernel takes fewer than 2^20"
    return f"loop_dim {loop_dim}: the kernel takes up to {MAX_LOOP_DIM}" if loop_dim > MAX_LOOP_DIM else None


register("rms_norm", "native", rms_norm, device="cuda", supports=_norm_supports)
register("rms_norm_add", "native", rms_norm_add, device="cuda", supports=_norm_add_supports)
register("loop_step", "native", loop_step, device="cuda", supports=_step_supports)
register("loop_step_", "native", loop_step_, device="cuda", supports=_step_supports)
