"""Rotary position embedding on interleaved pairs, alone and on the way into the cache of latent attention."""

from __future__ import annotations

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, autograd, define, direct


def _rope_fake(x, cos_sin, inverse=False):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


define(
    "rope",
    "(Tensor x, Tensor cos_sin, bool inverse=False) -> Tensor",
    _rope_fake,
    lambda *args: reference.rope(*args).contiguous(),
)
define(
    "rope_append_",
    "(Tensor down, Tensor weight, Tensor cos_sin, Tensor(a!) rows, Tensor? position, float eps) -> ()",
    lambda down, weight, cos_sin, rows, position, eps: None,
    reference.rope_append_,
)


def _setup(ctx, inputs, output):
    _, cos_sin, ctx.inverse = inputs
    ctx.save_for_backward(cos_sin)


def _autograd(ctx, grad):
    (cos_sin,) = ctx.saved_tensors
    return torch.ops.openmythos.rope(grad, cos_sin, not ctx.inverse), None, None


autograd("rope", _setup, _autograd)


@accepts_backend
def rope(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """(x0 + i x1) * (cos + i sin) on adjacent pairs, computed in float32 (Su et al., arXiv 2104.09864).

    x (B, T, H, d), cos_sin (T, d/2, 2) float32 -> (B, T, H, d) in x's dtype. Its gradient is the rotation back, by
    the same kernel.
    """
    if device := direct(x):
        return dispatch.select("rope", device, x, cos_sin, False)(x, cos_sin, False)
    # plain torch is what Inductor fuses best, and what knows the gradient of a table
    if torch.compiler.is_compiling() or cos_sin.requires_grad:
        return reference.rope(x, cos_sin)
    return torch.ops.openmythos.rope(x, cos_sin, False)


def _check(
    down: torch.Tensor, weight: torch.Tensor, cos_sin: torch.Tensor, rows: torch.Tensor, position: torch.Tensor | None
) -> None:
    if down.dim() != 3 or weight.dim() != 1 or weight.shape[0] > down.shape[2]:
        raise ValueError(f"down {tuple(down.shape)}, weight {tuple(weight.shape)}: must be (B, T, dc + dr) and (dc)")
    batch, new, width = down.shape
    pairs = (width - weight.shape[0]) // 2
    if tuple(cos_sin.shape[1:]) != (pairs, 2) or 2 * pairs != width - weight.shape[0]:
        raise ValueError(f"cos_sin {tuple(cos_sin.shape)}: must be (P, dr/2, 2), dr={width - weight.shape[0]}")
    if rows.dim() != 3 or rows.shape[0] != batch or rows.shape[2] != width:
        raise ValueError(f"rows {tuple(rows.shape)}: must be (B, S, dc + dr), ({batch}, S, {width})")
    if min(rows.shape[1], cos_sin.shape[0]) < new:
        raise ValueError(
            f"rows {tuple(rows.shape)}, cos_sin {tuple(cos_sin.shape)}: must have a row for each of {new} new tokens"
        )
    if position is not None and (tuple(position.shape) != (batch,) or position.is_floating_point()):
        raise ValueError(f"position {tuple(position.shape)} {position.dtype}: must be integers (B)=({batch},)")


@accepts_backend
def rope_append_(
    down: torch.Tensor,
    weight: torch.Tensor,
    cos_sin: torch.Tensor,
    rows: torch.Tensor,
    position: torch.Tensor | None = None,
    *,
    eps: float = 1e-6,
) -> None:
    """Write new tokens' [rms_norm(latent) * weight | rope(key)] into rows of the cache, in one launch.

    down (B, T, dc + dr), a token's latent before its norm and its rope key before its rotation; weight (dc); cos_sin
    (P, dr/2, 2) float32; rows (B, S, dc + dr), changed in place. Without `position` token t goes to rows[:, t] and is
    rotated by cos_sin[t]. With position (B) integers it goes to rows[b, position[b] + t] and is rotated by
    cos_sin[position[b] + t]: the values are not read here, so the caller keeps them below S - T and P - T.
    It has no autograd.

    Raises:
        ValueError: when shapes do not agree, or there are fewer rows than new tokens.
    """
    _check(down, weight, cos_sin, rows, position)
    args = (down, weight, cos_sin, rows, position, eps)
    if device := direct(down):
        dispatch.select("rope_append_", device, *args)(*args)
        return
    torch.ops.openmythos.rope_append_(*args)
