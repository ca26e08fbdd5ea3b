"""The dtype that statistics and accumulators are kept in."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit and float32 storage, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
