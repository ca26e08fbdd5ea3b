"""Mixture of experts: route (top-k), sort (slots by expert), experts (many rows), decode (few), backward."""

from __future__ import annotations

import torch

from openmythos.triton_kernels.moe.backward import moe_experts_backward
from openmythos.triton_kernels.moe.decode import MAX_ROWS, MAX_SLOTS, decode_experts
from openmythos.triton_kernels.moe.experts import Shared, grouped_experts
from openmythos.triton_kernels.moe.route import moe_route, moe_route_backward

__all__ = ["moe_experts", "moe_experts_backward", "moe_experts_hidden", "moe_route", "moe_route_backward"]


def moe_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Shared = (),
) -> torch.Tensor:
    """out[n] = sum_j weights[n, j] expert_e(x_n), e = ids[n, j], plus every shared expert's output.

    x (N, D), ids and weights (N, k), gate_up (E, 2, I, D), down (E, D, I), shared a sequence of (gate (J, D),
    up (J, D), down (D, J)), last strides 1 -> (N, D). A row with an id that is no expert is NaN.
    """
    few = 1 <= x.shape[0] <= MAX_ROWS and ids.numel() <= MAX_SLOTS
    return (decode_experts if few else grouped_experts)(x, ids, weights, gate_up, down, shared)


def moe_experts_hidden(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """moe_experts, and every choice's gate and up (N, k, 2, I), which the backward then need not compute again."""
    hidden = x.new_empty((*ids.shape, *gate_up.shape[1:3]))
    return grouped_experts(x, ids, weights, gate_up, down, hidden=hidden), hidden
