"""Calls of rms_norm by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

import torch

from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd, RmsNormBackward

EPS = 1e-6


def _tensors(rows: int, dim: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, dim, dtype=dtype, device=device), torch.ones(dim, dtype=dtype, device=device)


def rms_norm(rows: int, dim: int, dtype: torch.dtype, device: str) -> RmsNorm:
    """x (rows, dim)."""
    return RmsNorm(*_tensors(rows, dim, dtype, device), EPS)


def rms_norm_add(rows: int, dim: int, dtype: torch.dtype, device: str) -> RmsNormAdd:
    """x and residual (rows, dim)."""
    x, weight = _tensors(rows, dim, dtype, device)
    return RmsNormAdd(x, torch.zeros_like(x), weight, EPS)


def rms_norm_backward(rows: int, dim: int, dtype: torch.dtype, device: str) -> RmsNormBackward:
    """grad and x (rows, dim)."""
    x, weight = _tensors(rows, dim, dtype, device)
    return RmsNormBackward(torch.zeros_like(x), x, weight, EPS)
