"""moe_route, moe_experts, and moe: routed experts plus the shared ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, autocast, autograd, define, direct
from openmythos.ops.linear import linear, swiglu
from openmythos.reference.precision import wide


def _route_fake(logits, bias, k):
    ids = logits.new_empty((logits.shape[0], k), dtype=torch.int32)
    return ids, ids.new_empty(ids.shape, dtype=wide(logits.dtype)), ids.new_empty(logits.shape[1])


def _route_backward_fake(grad, ids, weights, n_experts, dtype):
    return grad.new_empty((ids.shape[0], n_experts), dtype=dtype)


def _experts_fake(x, ids, weights, gate_up, down):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _experts_hidden_fake(x, ids, weights, gate_up, down):
    return _experts_fake(x, ids, weights, gate_up, down), x.new_empty((*ids.shape, *gate_up.shape[1:3]))


def _experts_backward_fake(grad, x, ids, weights, gate_up, down, hidden=None):
    return tuple(torch.empty(part.shape, dtype=part.dtype, device=x.device) for part in (x, weights, gate_up, down))


define(
    "moe_route",
    "(Tensor logits, Tensor? bias, int k) -> (Tensor, Tensor, Tensor)",
    _route_fake,
    reference.moe_route,
)
define(
    "moe_route_backward",
    "(Tensor grad, Tensor ids, Tensor weights, int n_experts, ScalarType dtype) -> Tensor",
    _route_backward_fake,
    reference.moe_route_backward,
)
define(
    "moe_experts",
    "(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down) -> Tensor",
    _experts_fake,
    reference.moe_experts,
)
define(
    "moe_experts_hidden",
    "(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down) -> (Tensor, Tensor)",
    _experts_hidden_fake,
    reference.moe_experts_hidden,
)
define(
    "moe_experts_backward",
    "(Tensor grad, Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, Tensor? hidden=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _experts_backward_fake,
    reference.moe_experts_backward,
)


def _route_setup(ctx, inputs, output):
    ids, weights, counts = output
    ctx.n_experts, ctx.dtype = inputs[0].shape[1], inputs[0].dtype
    ctx.mark_non_differentiable(ids, counts)
    ctx.save_for_backward(ids, weights)


def _route_autograd(ctx, grad_ids, grad_weights, grad_counts):
    ids, weights = ctx.saved_tensors
    grad = torch.ops.openmythos.moe_route_backward(grad_weights, ids, weights, ctx.n_experts, ctx.dtype)
    return grad, None, None


def _experts_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _experts_autograd(ctx, grad):
    d_x, d_weights, d_gate_up, d_down = torch.ops.openmythos.moe_experts_backward(grad, *ctx.saved_tensors)
    return d_x, None, d_weights, d_gate_up, d_down


def _experts_hidden_setup(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _experts_hidden_autograd(ctx, grad, grad_hidden):
    return _experts_autograd(ctx, grad)


autograd("moe_route", _route_setup, _route_autograd)
autograd("moe_experts", _experts_setup, _experts_autograd)
autograd("moe_experts_hidden", _experts_hidden_setup, _experts_hidden_autograd)


def _check_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> None:
    if x.dim() != 2:
        raise ValueError(f"x {tuple(x.shape)}: must be (N, D)")
    if ids.dim() != 2 or ids.shape[0] != x.shape[0] or ids.shape != weights.shape:
        raise ValueError(
            f"ids {tuple(ids.shape)} and weights {tuple(weights.shape)}: both must be (N, k) with N={x.shape[0]}"
        )
    if gate_up.dim() != 4 or gate_up.shape[1] != 2 or gate_up.shape[3] != x.shape[1]:
        raise ValueError(f"gate_up {tuple(gate_up.shape)}: must be (E, 2, I, D) with D={x.shape[1]}")
    expected = (gate_up.shape[0], gate_up.shape[3], gate_up.shape[2])
    if tuple(down.shape) != expected:
        raise ValueError(f"down {tuple(down.shape)}: must be (E, D, I)={expected}")


@accepts_backend
def moe_route(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose k experts a row by logits + bias, weighted by the softmax of their raw logits.

    Equal to upstream's softmax over all experts, gather and renormalise; the bias balances load and
    never enters the weights (DeepSeek-V3, arXiv 2412.19437). Ties go to the lower id, NaN counts as -inf.

    logits (N, E), bias (E) -> ids (N, k) int32, weights (N, k) float32, counts (E) int32, the rows each
    expert serves.

    Raises:
        ValueError: when k is not in 1..E, or the shapes do not agree.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits {tuple(logits.shape)}: must be (N, E)")
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k}: allowed is 1 to the number of experts, {logits.shape[1]}")
    if bias is not None and bias.shape != logits.shape[1:]:
        raise ValueError(f"bias {tuple(bias.shape)}: must be (E)=({logits.shape[1]},)")
    if device := direct(logits):
        return dispatch.select("moe_route", device, logits, bias, k)(logits, bias, k)
    return torch.ops.openmythos.moe_route(logits, bias, k)


Shared = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def _add_shared(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Shared,
    recompute: bool = False,
) -> torch.Tensor:
    """Routed experts, then the shared ones, each by its own best backend; summed in float32 or wider."""
    out = moe_experts(x, ids, weights, gate_up, down, recompute=recompute)
    total = out.to(wide(out.dtype))
    for expert in shared:
        total = total + swiglu(x, *expert)
    return total.to(out.dtype)


dispatch.register_reference("moe", _add_shared)


def _keeps_hidden(device: str) -> bool:
    """Whether a forward under grad on this device keeps gate and up: where a kernel writes them on its way."""
    names = [row.name for row in dispatch.rows("moe_experts_hidden", device) if row.name != "reference"]
    asked = dispatch.asked_for()
    return asked in names if asked else bool(names)


# What torch.compiler.assume_constant_result does, less the second that it takes to import the compiler.
_keeps_hidden._dynamo_marked_constant = True


@accepts_backend
def moe_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Shared = (),
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """out[n] = sum_j weights[n, j] * expert_e(x_n) with e = ids[n, j], plus every shared expert's output.

    expert(x) = down(silu(gate x) * up x). x (N, D), ids (N, k) int32, weights (N, k) float32, gate_up (E, 2, I, D),
    down (E, D, I), shared a sequence of (gate (J, D), up (J, D), down (D, J)), all but ids and weights in one
    dtype -> (N, D) in x's dtype. Deterministic; an expert without rows is never read.

    For the backward pass GPU kernels keep gate x and up x of every choice, 2 N k I numbers; with `recompute` they keep
    nothing but the arguments and multiply again, as CPUs always do. An id outside 0..E-1 is an error on the CPU; on a
    GPU, where looking at it would wait for the device, its row of the result is NaN.

    Raises:
        ValueError: when the shapes do not agree.
    """
    _check_experts(x, ids, weights, gate_up, down)
    args = (x, ids, weights, gate_up, down)
    if shared:
        if device := direct(x):
            return dispatch.select("moe", device, *args, shared)(*args, shared)
        return _add_shared(*args, shared, recompute)
    if device := direct(x):
        return dispatch.select("moe_experts", device, *args)(*args)
    x, gate_up, down = autocast(x, gate_up, down)
    if not recompute and torch.is_grad_enabled() and _keeps_hidden(x.device.type):
        return torch.ops.openmythos.moe_experts_hidden(x, ids, weights, gate_up, down)[0]
    return torch.ops.openmythos.moe_experts(x, ids, weights, gate_up, down)


@accepts_backend
def moe(
    x: torch.Tensor,
    router: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Shared = (),
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """Routed experts, chosen by x @ router^T, plus the shared experts, which serve every row.

    x (N, D), router (E, D), bias (E); the rest as in `moe_experts` -> (N, D).
    """
    ids, weights, _ = moe_route(linear(x, router), bias, k)
    return moe_experts(x, ids, weights, gate_up, down, shared, recompute=recompute)
