"""Inputs of the experts."""

from __future__ import annotations

import torch

from tests.cases import randn


def experts(n: int, d: int, i: int, e: int, k: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """(x, ids, weights, gate_up, down), with distinct ids in each row."""
    ids = torch.stack([torch.randperm(e)[:k] for _ in range(n)]) if n else torch.empty(0, k)
    weights = torch.softmax(randn(n, k), dim=-1)
    gate_up, down = randn(e, 2, i, d, dtype=dtype, scale=d**-0.5), randn(e, d, i, dtype=dtype, scale=i**-0.5)
    return [randn(n, d, dtype=dtype), ids.int(), weights, gate_up, down]
