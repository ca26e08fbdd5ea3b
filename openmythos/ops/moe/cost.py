"""Bytes and FLOPs of the mixture of experts."""

from __future__ import annotations

from openmythos.ops.cost import Cost
from openmythos.ops.moe import MoeExperts


def distinct_experts(rows: int, experts: int, k: int) -> float:
    """The number of experts that uniform routing of `rows` rows is expected to hit: E (1 - (1 - k/E)^N)."""
    return experts * (1 - (1 - k / experts) ** rows)


def moe_experts(call: MoeExperts, *, hit: float | None = None) -> Cost:
    """Routed and shared experts; reads the weights of `hit` routed ones, by default as many as uniform routing."""
    experts, (rows, k) = call.experts, call.ids.shape
    hit = distinct_experts(rows, experts.count, k) if hit is None else hit
    one = 3 * experts.dim * experts.width
    shared = sum(matrix.numel() for expert in experts.shared for matrix in expert)
    return Cost(
        weights=(hit * one + shared) * experts.dtype.itemsize,
        activations=2 * call.x.nbytes,
        flops=2 * rows * (k * one + shared),
    )


def moe(call: MoeExperts, *, hit: float | None = None) -> Cost:
    """`moe_experts` and the router's product."""
    router = call.experts.dim * call.experts.count
    routing = Cost(weights=router * call.experts.dtype.itemsize, flops=2 * call.x.shape[0] * router)
    return moe_experts(call, hit=hit) + routing
