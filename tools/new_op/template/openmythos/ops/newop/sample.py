"""Calls of newop by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

import torch

from openmythos.ops.newop import NewOp


def newop(rows: int, dim: int, dtype: torch.dtype, device: str) -> NewOp:
    """x (rows, dim)."""
    return NewOp(torch.zeros(rows, dim, dtype=dtype, device=device))
