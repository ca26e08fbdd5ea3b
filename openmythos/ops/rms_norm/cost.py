"""Bytes and FLOPs of rms_norm, alone and with a residual."""

from __future__ import annotations

import torch

from openmythos.ops.cost import Cost
from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd


def _result_dtype(call: RmsNorm | RmsNormAdd, dtype: torch.dtype) -> torch.dtype:
    return call.dtype or torch.promote_types(dtype, call.weight.dtype)


def rms_norm(call: RmsNorm) -> Cost:
    """One read and one write of each row."""
    written = call.x.numel() * _result_dtype(call, call.x.dtype).itemsize
    return Cost(weights=call.weight.nbytes, activations=call.x.nbytes + written, flops=4 * call.x.numel())


def rms_norm_add(call: RmsNormAdd) -> Cost:
    """Reads x and the residual, writes their sum and its norm."""
    dtype = torch.promote_types(call.x.dtype, call.residual.dtype)
    written = call.x.numel() * (dtype.itemsize + _result_dtype(call, dtype).itemsize)
    moved = call.x.nbytes + call.residual.nbytes + written
    return Cost(weights=call.weight.nbytes, activations=moved, flops=5 * call.x.numel())
