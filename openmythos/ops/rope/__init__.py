"""Rotary position embedding on interleaved pairs, alone and fused with writing the cache of latent attention."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, autograd, define, direct, gradients
from openmythos.ops.rope import reference


class Rope(NamedTuple):
    """x (B, T, H, d), cos_sin (T, d/2, 2) float32; `inverse` rotates back."""

    x: torch.Tensor
    cos_sin: torch.Tensor
    inverse: bool = False


class RopeAppend(NamedTuple):
    """down (B, T, dc + dr), weight (dc), cos_sin (P, dr/2, 2), cache_rows (B, S, dc + dr), position (B) or None."""

    down: torch.Tensor
    weight: torch.Tensor
    cos_sin: torch.Tensor
    cache_rows: torch.Tensor
    position: torch.Tensor | None
    eps: float


define(
    "rope",
    Rope,
    "Tensor",
    fake=lambda call: torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device),
    reference=lambda call: reference.rope(*call).contiguous(),
)
define(
    "rope_append_",
    RopeAppend,
    "()",
    fake=lambda call: None,
    reference=lambda call: reference.rope_append_(*call),
    mutates=("cache_rows",),
)


def _setup(ctx, inputs, output):
    call = Rope(*inputs)
    ctx.inverse = call.inverse
    ctx.save_for_backward(call.cos_sin)


def _autograd(ctx, grad):
    (cos_sin,) = ctx.saved_tensors
    return gradients(Rope, x=torch.ops.openmythos.rope(grad, cos_sin, not ctx.inverse))


autograd("rope", _setup, _autograd)


@accepts_backend
def rope(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """(x0 + i x1) * (cos + i sin) on adjacent pairs, computed in float32 (Su et al., arXiv 2104.09864).

    x (B, T, H, d), cos_sin (T, d/2, 2) float32 -> (B, T, H, d) in x's dtype. Its gradient is the inverse rotation, by
    the same kernel.
    """
    call = Rope(x, cos_sin, False)
    if device := direct(x):
        return dispatch.select("rope", device, call)(call)
    # Inductor fuses plain torch best, and only plain torch gives the gradient of cos_sin.
    if torch.compiler.is_compiling() or cos_sin.requires_grad:
        return reference.rope(x, cos_sin)
    return torch.ops.openmythos.rope(*call)


def _check(call: RopeAppend) -> None:
    down, weight, cos_sin, cache_rows, position = call.down, call.weight, call.cos_sin, call.cache_rows, call.position
    if down.dim() != 3 or weight.dim() != 1 or weight.shape[0] > down.shape[2]:
        raise ValueError(f"down {tuple(down.shape)}, weight {tuple(weight.shape)}: must be (B, T, dc + dr) and (dc)")
    batch, new, width = down.shape
    pairs = (width - weight.shape[0]) // 2
    if tuple(cos_sin.shape[1:]) != (pairs, 2) or 2 * pairs != width - weight.shape[0]:
        raise ValueError(f"cos_sin {tuple(cos_sin.shape)}: must be (P, dr/2, 2), dr={width - weight.shape[0]}")
    if cache_rows.dim() != 3 or cache_rows.shape[0] != batch or cache_rows.shape[2] != width:
        raise ValueError(f"cache_rows {tuple(cache_rows.shape)}: must be (B, S, dc + dr), ({batch}, S, {width})")
    if min(cache_rows.shape[1], cos_sin.shape[0]) < new:
        raise ValueError(
            f"cache_rows {tuple(cache_rows.shape)}, cos_sin {tuple(cos_sin.shape)}: need a row for each of {new} new "
            "tokens"
        )
    if position is not None and (tuple(position.shape) != (batch,) or position.is_floating_point()):
        raise ValueError(f"position {tuple(position.shape)} {position.dtype}: must be integers (B)=({batch},)")


@accepts_backend
def rope_append_(
    down: torch.Tensor,
    weight: torch.Tensor,
    cos_sin: torch.Tensor,
    cache_rows: torch.Tensor,
    position: torch.Tensor | None = None,
    *,
    eps: float = 1e-6,
) -> None:
    """Write new tokens' [rms_norm(latent) * weight | rope(key)] into rows of the cache, in one launch.

    down (B, T, dc + dr), a token's latent before its norm and its rope key before its rotation; weight (dc); cos_sin
    (P, dr/2, 2) float32; cache_rows (B, S, dc + dr), changed in place. Without `position` token t goes to
    cache_rows[:, t] and is rotated by cos_sin[t]. With position (B) integers it goes to cache_rows[b, position[b] + t]
    and is rotated by cos_sin[position[b] + t]; the values are not checked, so the caller keeps position at most S - T
    and P - T. The op has no autograd.

    Raises:
        ValueError: when shapes do not agree, or there are fewer rows than new tokens.
    """
    call = RopeAppend(down, weight, cos_sin, cache_rows, position, eps)
    _check(call)
    if device := direct(down):
        dispatch.select("rope_append_", device, call)(call)
        return
    torch.ops.openmythos.rope_append_(*call)
