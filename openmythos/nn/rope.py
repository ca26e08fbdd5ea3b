"""Rotary position embedding under upstream's names: complex tables, interleaved pairs."""

from __future__ import annotations

import torch

from openmythos import ops


def precompute_rope_freqs(dim: int, max_len: int, theta: float = 500000.0) -> torch.Tensor:
    """exp(i * position * theta^(-2k/dim)): complex64 (max_len, dim/2) for positions 0..max_len-1."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rope_table(dim: int, max_len: int, theta: float, device: torch.device | None = None) -> torch.Tensor:
    """`precompute_rope_freqs` as real [cos, sin]: float32 (max_len, dim/2, 2)."""
    if device is not None and device.type == "meta":
        return torch.empty((max_len, (dim + 1) // 2, 2), device=device)
    return torch.view_as_real(precompute_rope_freqs(dim, max_len, theta)).contiguous().to(device)


def real_table(freqs_cis: torch.Tensor, new: int, dim: int) -> torch.Tensor:
    """The first `new` rows of a complex table as real [cos, sin], (new, dim/2, 2), a view.

    Raises:
        RuntimeError: when freqs_cis has fewer than `new` rows or is not for heads of size `dim`.
    """
    if freqs_cis.shape[0] < new:
        raise RuntimeError(f"freqs_cis has {freqs_cis.shape[0]} rows: x has {new} positions (its dimension 1)")
    if 2 * freqs_cis.shape[1] != dim:
        raise RuntimeError(f"freqs_cis has {freqs_cis.shape[1]} pairs: x has heads of size {dim}")
    return torch.view_as_real(freqs_cis[:new])


def apply_rope(x: torch.Tensor, freqs_cis: torch.Tensor) -> torch.Tensor:
    """Rotate adjacent pairs of x by the first T rows of freqs_cis (Su et al., arXiv 2104.09864).

    x (B, T, H, d), freqs_cis complex (at least T, d/2) -> (B, T, H, d) in x's dtype, computed in float32.

    Raises:
        RuntimeError: when freqs_cis has fewer than T rows or is not for heads of size d.
    """
    return ops.rope(x, real_table(freqs_cis, x.shape[1], x.shape[-1]))
