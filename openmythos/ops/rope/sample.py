"""Calls of rope and rope_append_ by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

import torch

from openmythos.ops.rope import Rope, RopeAppend

EPS = 1e-6


def rope(tokens: int, heads: int, dim: int, dtype: torch.dtype, device: str) -> Rope:
    """x (1, tokens, heads, dim)."""
    x = torch.zeros(1, tokens, heads, dim, dtype=dtype, device=device)
    return Rope(x, torch.zeros(tokens, dim // 2, 2, device=device))


def rope_append_(tokens: int, latent: int, dim: int, dtype: torch.dtype, device: str) -> RopeAppend:
    """down and cache_rows (1, tokens, latent + dim)."""
    down = torch.zeros(1, tokens, latent + dim, dtype=dtype, device=device)
    weight = torch.ones(latent, dtype=dtype, device=device)
    return RopeAppend(down, weight, torch.zeros(tokens, dim // 2, 2, device=device), torch.zeros_like(down), None, EPS)
