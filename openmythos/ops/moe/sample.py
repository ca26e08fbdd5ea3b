"""Calls of the mixture of experts by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos.ops.moe import (
    MoeExperts,
    MoeExpertsBackward,
    MoeRoute,
    MoeRouteBackward,
    SharedExpert,
    StackedExperts,
)


class Sizes(NamedTuple):
    """Columns D, hidden units I of a routed expert, E routed experts, k of them for each row, and shared experts.

    A shared expert has k I hidden units.
    """

    dim: int
    width: int
    experts: int
    k: int
    shared: int = 0


def experts(sizes: Sizes, dtype: torch.dtype, device: str) -> StackedExperts:
    """The weights of all experts."""
    kind = {"dtype": dtype, "device": device}
    dim, width = sizes.dim, sizes.k * sizes.width
    shared = [
        SharedExpert(*torch.zeros(2, width, dim, **kind), torch.zeros(dim, width, **kind)) for _ in range(sizes.shared)
    ]
    gate_up = torch.zeros(sizes.experts, 2, sizes.width, dim, **kind)
    return StackedExperts(gate_up, torch.zeros(sizes.experts, dim, sizes.width, **kind), tuple(shared))


def moe_route(rows: int, sizes: Sizes, dtype: torch.dtype, device: str) -> MoeRoute:
    """logits (rows, E)."""
    logits = torch.zeros(rows, sizes.experts, dtype=dtype, device=device)
    return MoeRoute(logits, torch.zeros(sizes.experts, device=device), sizes.k)


def moe_route_backward(rows: int, sizes: Sizes, dtype: torch.dtype, device: str) -> MoeRouteBackward:
    """grad, ids and weights (rows, k)."""
    ids = torch.zeros(rows, sizes.k, dtype=torch.int32, device=device)
    grad, weights = torch.zeros(2, rows, sizes.k, device=device)
    return MoeRouteBackward(grad, ids, weights, sizes.experts, dtype)


def moe_experts(rows: int, sizes: Sizes, dtype: torch.dtype, device: str) -> MoeExperts:
    """x (rows, D), ids and weights (rows, k)."""
    x = torch.zeros(rows, sizes.dim, dtype=dtype, device=device)
    ids = torch.zeros(rows, sizes.k, dtype=torch.int32, device=device)
    return MoeExperts(x, ids, torch.zeros(rows, sizes.k, device=device), experts(sizes, dtype, device))


def moe_experts_backward(rows: int, sizes: Sizes, dtype: torch.dtype, device: str) -> MoeExpertsBackward:
    """The backward of `moe_experts`, for routed experts only."""
    call = moe_experts(rows, sizes._replace(shared=0), dtype, device)
    return MoeExpertsBackward(torch.zeros_like(call.x), *call)
