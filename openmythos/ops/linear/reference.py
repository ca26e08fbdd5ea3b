"""Projections without bias, and the dense SwiGLU over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight^T. x (..., K), weight (O, K) -> (..., O)."""
    return F.linear(x, weight)


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """down(silu(gate x) * up x). x (..., D), gate and up (I, D), down (O, I) -> (..., O)."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
