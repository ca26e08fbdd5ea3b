"""Multi-head attention with an arbitrary additive mask and dropout, which no fused kernel supports."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    mask: torch.Tensor | None = None,
    dropout: float | Callable[[torch.Tensor], torch.Tensor] = 0.0,
) -> torch.Tensor:
    """dropout(softmax(q k^T * scale + mask)) v.

    q (B, T, H, d), k (B, S, H, d), v (B, S, H, dv), mask broadcastable to (B, H, T, S) -> (B, T, H, dv).
    dropout: a probability, or a function that is applied to the weights (B, H, T, S).
    """
    scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * scale
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = F.softmax(scores, dim=-1)
    if callable(dropout):
        weights = dropout(weights)
    elif dropout > 0:
        weights = F.dropout(weights, p=dropout)
    return torch.matmul(weights.to(v.dtype), v.transpose(1, 2)).transpose(1, 2)
