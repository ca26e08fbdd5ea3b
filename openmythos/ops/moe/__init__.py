"""The mixture of experts: moe_route, moe_experts, and their composition moe."""

from __future__ import annotations

import torch

from openmythos.ops.core import accepts_backend
from openmythos.ops.linear import linear
from openmythos.ops.moe.experts import MoeExperts, MoeExpertsBackward, moe_experts
from openmythos.ops.moe.route import MoeRoute, MoeRouteBackward, moe_route
from openmythos.ops.moe.weights import ExpertWeights, SharedExpert, StackedExperts

__all__ = [
    "ExpertWeights",
    "MoeExperts",
    "MoeExpertsBackward",
    "MoeRoute",
    "MoeRouteBackward",
    "SharedExpert",
    "StackedExperts",
    "moe",
    "moe_experts",
    "moe_route",
]


@accepts_backend
def moe(
    x: torch.Tensor,
    router: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    experts: ExpertWeights,
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """moe_experts(x, *moe_route(x @ router^T, bias, k)): routing, the routed and the shared experts.

    x (N, D), router (E, D), bias (E); the rest as in `moe_experts` -> (N, D).
    """
    ids, weights, _ = moe_route(linear(x, router), bias, k)
    return moe_experts(x, ids, weights, experts, recompute=recompute)
