"""rope, forth and back, and rope_append_."""

from __future__ import annotations

import torch

from openmythos.backends.triton.rows import register_row, why_not

# Elements of a row that a kernel holds in registers, and rows that it counts in 32 bits.
MAX_HEAD, MAX_LATENT, MAX_ROWS = 256, 8192, 2**31


def _supports(x: torch.Tensor, cos_sin: torch.Tensor, inverse: bool = False) -> str | None:
    if x.shape[-1] > MAX_HEAD:
        return f"heads of size {x.shape[-1]}: the kernel takes up to {MAX_HEAD}"
    if x.shape[:-1].numel() >= MAX_ROWS:
        return f"{x.shape[:-1].numel()} rows: one launch takes fewer than 2^31"
    return why_not(x) or _table_reason(cos_sin)


def _table_reason(cos_sin: torch.Tensor) -> str | None:
    return None if cos_sin.dtype == torch.float32 else "cos_sin is not float32"


def _append_supports(
    down: torch.Tensor,
    weight: torch.Tensor,
    cos_sin: torch.Tensor,
    rows: torch.Tensor,
    position: torch.Tensor | None,
    eps: float,
) -> str | None:
    latent = weight.shape[0]
    if not 1 <= latent <= MAX_LATENT:
        return f"a latent of width {latent}: the kernel takes 1 to {MAX_LATENT}"
    if down.shape[-1] - latent > MAX_HEAD:
        return f"a rope key of width {down.shape[-1] - latent}: the kernel takes up to {MAX_HEAD}"
    return why_not(down, weight, rows) or _table_reason(cos_sin)


register_row("rope", "rope.rope", _supports)
register_row("rope_append_", "rope.rope_append_", _append_supports)
