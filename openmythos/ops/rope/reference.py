"""Rotary position embedding on interleaved pairs (Su et al., 2021), alone and fused with writing the cache."""

from __future__ import annotations

import torch

from openmythos.ops.precision import wide
from openmythos.ops.rms_norm.reference import rms_norm


def rope(x: torch.Tensor, cos_sin: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """(x0 + i x1) * (cos + i sin) on adjacent pairs, computed in float32; `inverse` rotates back, by cos - i sin.

    x (B, T, H, d), cos_sin (T, d/2, 2) or (B, T, d/2, 2) -> (B, T, H, d) in x's dtype.
    """
    pairs = x.to(wide(x.dtype)).unflatten(-1, (-1, 2))
    cos, sin = cos_sin[..., None, :, 0], cos_sin[..., None, :, 1]
    if inverse:
        sin = -sin
    even = pairs[..., 0] * cos - pairs[..., 1] * sin
    odd = pairs[..., 0] * sin + pairs[..., 1] * cos
    return torch.stack((even, odd), dim=-1).flatten(-2).to(x.dtype)


def places(position: torch.Tensor, new: int) -> torch.Tensor:
    """position[b] + t, (B, T) int64: where the new tokens of each sequence are."""
    return position.long()[:, None] + torch.arange(new, device=position.device)


def rope_append_(
    down: torch.Tensor,
    weight: torch.Tensor,
    cos_sin: torch.Tensor,
    cache_rows: torch.Tensor,
    position: torch.Tensor | None,
    eps: float,
) -> None:
    """Write [rms_norm(down[..., :dc]) * weight | rope(down[..., dc:])] of new tokens into cache rows, in place.

    down (B, T, dc + dr), weight (dc), cos_sin (P, dr/2, 2). Without `position` token t goes to cache_rows[:, t] and is
    rotated by cos_sin[t]; with position (B) integers, to cache_rows[b, position[b] + t] and by
    cos_sin[position[b] + t]. cache_rows (B, S, dc + dr) in any dtype.
    """
    batch, new, _ = down.shape
    width = weight.shape[0]
    latent, key = rms_norm(down[..., :width], weight, eps), down[..., None, width:]
    if position is None:
        cache_rows[:, :new, :width] = latent.to(cache_rows.dtype)
        cache_rows[:, :new, width:] = rope(key, cos_sin[:new])[:, :, 0].to(cache_rows.dtype)
        return
    where = places(position, new)
    index = torch.arange(batch, device=down.device)[:, None], where
    rotated = rope(key, cos_sin[where])[:, :, 0]
    cache_rows.index_put_(index, torch.cat((latent.to(cache_rows.dtype), rotated.to(cache_rows.dtype)), dim=-1))
