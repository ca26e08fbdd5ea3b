"""Mixture of experts: route (top-k), sort (slots by expert), grouped (many rows), streamed (few), backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from openmythos.triton_kernels.moe.backward import moe_experts_backward
from openmythos.triton_kernels.moe.grouped import grouped_experts
from openmythos.triton_kernels.moe.route import moe_route, moe_route_backward
from openmythos.triton_kernels.moe.streamed import MAX_ROWS, MAX_SLOTS, streamed_experts

if TYPE_CHECKING:
    from openmythos.ops.moe import MoeExperts

__all__ = ["moe_experts", "moe_experts_backward", "moe_experts_hidden", "moe_route", "moe_route_backward"]


def moe_experts(call: MoeExperts) -> torch.Tensor:
    """out[n] = sum_j weights[n, j] expert_e(x_n), e = ids[n, j], plus every shared expert's output.

    The last stride of every tensor is 1. The row of an id outside 0..E-1 is NaN.
    """
    few = 1 <= call.x.shape[0] <= MAX_ROWS and call.ids.numel() <= MAX_SLOTS
    return streamed_experts(call) if few else grouped_experts(call)


def moe_experts_hidden(call: MoeExperts) -> tuple[torch.Tensor, torch.Tensor]:
    """moe_experts, and every choice's gate x and up x (N, k, 2, I) for the backward."""
    hidden = call.x.new_empty((*call.ids.shape, 2, call.experts.width))
    return grouped_experts(call, hidden=hidden), hidden
