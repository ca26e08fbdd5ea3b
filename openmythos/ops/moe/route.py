"""moe_route: top-k routing of rows to experts."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, autograd, define, direct, gradients
from openmythos.ops.moe import reference
from openmythos.ops.precision import wide


class MoeRoute(NamedTuple):
    """logits (N, E), bias (E) or None, k experts per row."""

    logits: torch.Tensor
    bias: torch.Tensor | None
    k: int


class MoeRouteBackward(NamedTuple):
    """grad, ids and weights (N, k); `dtype` is that of the logits."""

    grad: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    n_experts: int
    dtype: torch.dtype


def _fake(call: MoeRoute) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, experts = call.logits.shape
    ids = call.logits.new_empty((rows, call.k), dtype=torch.int32)
    return ids, ids.new_empty(ids.shape, dtype=wide(call.logits.dtype)), ids.new_empty(experts)


define("moe_route", MoeRoute, "(Tensor, Tensor, Tensor)", fake=_fake, reference=lambda c: reference.moe_route(*c))
define(
    "moe_route_backward",
    MoeRouteBackward,
    "Tensor",
    fake=lambda call: call.grad.new_empty((call.ids.shape[0], call.n_experts), dtype=call.dtype),
    reference=lambda call: reference.moe_route_backward(*call),
)


def _setup(ctx, inputs, output):
    call = MoeRoute(*inputs)
    ids, weights, counts = output
    ctx.n_experts, ctx.dtype = call.logits.shape[1], call.logits.dtype
    ctx.mark_non_differentiable(ids, counts)
    ctx.save_for_backward(ids, weights)


def _autograd(ctx, grad_ids, grad_weights, grad_counts):
    ids, weights = ctx.saved_tensors
    grad = torch.ops.openmythos.moe_route_backward(grad_weights, ids, weights, ctx.n_experts, ctx.dtype)
    return gradients(MoeRoute, logits=grad)


autograd("moe_route", _setup, _autograd)


@accepts_backend
def moe_route(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose k experts per row by logits + bias, weighted by the softmax of their raw logits.

    Equal to upstream's softmax over all experts, gather and renormalise; the bias balances load and
    never enters the weights (DeepSeek-V3, arXiv 2412.19437). Ties go to the lower id, NaN counts as -inf.

    logits (N, E), bias (E) -> ids (N, k) int32, weights (N, k) float32, counts (E) int32, the number of rows that
    each expert serves.

    Raises:
        ValueError: when k is not in 1..E, or the shapes do not agree.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits {tuple(logits.shape)}: must be (N, E)")
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k}: allowed is 1 to the number of experts, {logits.shape[1]}")
    if bias is not None and bias.shape != logits.shape[1:]:
        raise ValueError(f"bias {tuple(bias.shape)}: must be (E)=({logits.shape[1]},)")
    call = MoeRoute(logits, bias, k)
    if device := direct(logits):
        return dispatch.select("moe_route", device, call)(call)
    return torch.ops.openmythos.moe_route(*call)
