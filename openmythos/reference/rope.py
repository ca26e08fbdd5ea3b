"""Rotary position embedding on interleaved pairs (Su et al., 2021)."""

from __future__ import annotations

import torch

from openmythos.reference.precision import wide


def rope(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """(x0 + i x1) * (cos + i sin) on adjacent pairs, computed in float32.

    x (B, T, H, d), cos_sin (T, d/2, 2) -> (B, T, H, d) in x's dtype.
    """
    pairs = x.to(wide(x.dtype)).unflatten(-1, (-1, 2))
    cos, sin = cos_sin[:, None, :, 0], cos_sin[:, None, :, 1]
    even = pairs[..., 0] * cos - pairs[..., 1] * sin
    odd = pairs[..., 0] * sin + pairs[..., 1] * cos
    return torch.stack((even, odd), dim=-1).flatten(-2).to(x.dtype)
