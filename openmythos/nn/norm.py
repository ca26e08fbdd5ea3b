"""RMSNorm."""

from __future__ import annotations

import torch
from torch import nn

from openmythos import ops
from openmythos.nn.fusion import fusable


@fusable
class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467), statistics in float32.

    (..., dim) -> (..., dim) in the promotion of the dtypes of x and weight.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
