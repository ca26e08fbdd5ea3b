"""moe_experts: routed SwiGLU experts, plus the shared ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, autocast, autograd, define, direct
from openmythos.ops.linear import swiglu
from openmythos.ops.moe import reference
from openmythos.ops.moe.weights import ExpertWeights, SharedExpert, StackedExperts
from openmythos.ops.precision import wide

_STACKS = {"experts": ("gate_up", "down")}


class MoeExperts(NamedTuple):
    """x (N, D), ids (N, k) integers, weights (N, k), and the experts."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    experts: ExpertWeights

    def flat(self) -> tuple[torch.Tensor, ...]:
        """The arguments of `openmythos::moe_experts`, whose schema takes the routed experts' stacks."""
        return self.x, self.ids, self.weights, self.experts.gate_up, self.experts.down

    @classmethod
    def from_flat(
        cls,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        shared: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = (),
    ) -> MoeExperts:
        """The call whose `flat` is these arguments."""
        return cls(x, ids, weights, StackedExperts(gate_up, down, tuple(SharedExpert(*part) for part in shared)))


class MoeExpertsBackward(NamedTuple):
    """grad and x (N, D), ids and weights (N, k), the routed experts, and gate x and up x (N, k, 2, I) or None."""

    grad: torch.Tensor
    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    experts: ExpertWeights
    hidden: torch.Tensor | None = None

    @classmethod
    def from_flat(
        cls,
        grad: torch.Tensor,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> MoeExpertsBackward:
        """The call of these arguments of `openmythos::moe_experts_backward`."""
        return cls(grad, x, ids, weights, StackedExperts(gate_up, down), hidden)


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _hidden_fake(call: MoeExperts) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_like(call.x), call.x.new_empty((*call.ids.shape, 2, call.experts.width))


def _reference(call: MoeExperts) -> torch.Tensor:
    """The routed experts' reference; with shared experts the sum of both, each computed by its best backend."""
    if not call.experts.shared:
        return reference.moe_experts(*call.flat())
    routed = call._replace(experts=call.experts.routed())
    out = dispatch.select("moe_experts", call.x.device.type, routed)(routed)
    return _add_shared(out, call.x, call.experts.shared)


def _add_shared(out: torch.Tensor, x: torch.Tensor, shared: Sequence[SharedExpert]) -> torch.Tensor:
    """The sum in float32 or wider, rounded once."""
    total = out.to(wide(out.dtype))
    for expert in shared:
        total = total + swiglu(x, *expert)
    return total.to(out.dtype)


def _backward_reference(call: MoeExpertsBackward) -> tuple[torch.Tensor, ...]:
    weights = (call.experts.gate_up, call.experts.down)
    return reference.moe_experts_backward(call.grad, call.x, call.ids, call.weights, *weights, call.hidden)


define(
    "moe_experts",
    MoeExperts,
    "Tensor",
    fake=lambda call: _empty_like(call.x),
    reference=_reference,
    expand=_STACKS,
)
define(
    "moe_experts_hidden",
    MoeExperts,
    "(Tensor, Tensor)",
    fake=_hidden_fake,
    reference=lambda call: reference.moe_experts_hidden(*call.flat()),
    expand=_STACKS,
)
define(
    "moe_experts_backward",
    MoeExpertsBackward,
    "(Tensor, Tensor, Tensor, Tensor)",
    fake=lambda c: tuple(map(_empty_like, (c.x, c.weights, c.experts.gate_up, c.experts.down))),
    reference=_backward_reference,
    expand=_STACKS,
)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _hidden_setup(ctx, inputs, output):
    _, hidden = output
    ctx.mark_non_differentiable(hidden)
    ctx.save_for_backward(*inputs, hidden)


def _autograd(ctx, grad, grad_hidden=None):
    d_x, d_weights, d_gate_up, d_down = torch.ops.openmythos.moe_experts_backward(grad, *ctx.saved_tensors)
    return d_x, None, d_weights, d_gate_up, d_down


autograd("moe_experts", _setup, _autograd)
autograd("moe_experts_hidden", _hidden_setup, _autograd)


def _check(call: MoeExperts) -> None:
    x, ids, weights = call.x, call.ids, call.weights
    if x.dim() != 2:
        raise ValueError(f"x {tuple(x.shape)}: must be (N, D)")
    if ids.dim() != 2 or ids.shape[0] != x.shape[0] or ids.shape != weights.shape:
        raise ValueError(
            f"ids {tuple(ids.shape)} and weights {tuple(weights.shape)}: both must be (N, k) with N={x.shape[0]}"
        )
    call.experts.check(x.shape[1])


def _keeps_hidden(device: str) -> bool:
    """Whether a forward under grad on this device keeps gate x and up x: only if a kernel computes them anyway."""
    names = [entry.name for entry in dispatch.entries("moe_experts_hidden", device) if entry.name != "reference"]
    selected = dispatch.selected_by_name()
    return selected in names if selected else bool(names)


# What torch.compiler.assume_constant_result does, without its import, which takes a second.
_keeps_hidden._dynamo_marked_constant = True


@accepts_backend
def moe_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """out[n] = sum_j weights[n, j] * expert_e(x_n) with e = ids[n, j], plus every shared expert's output.

    expert(x) = down(silu(gate x) * up x). x (N, D), ids (N, k) int32, weights (N, k) float32, `experts` (see
    `StackedExperts`), all but ids and weights in one dtype -> (N, D) in x's dtype. Deterministic; an expert without
    rows is never read.

    For the backward pass GPU kernels keep gate x and up x of every choice, 2 N k I elements; with `recompute` they
    keep only the arguments and recompute both, as CPUs always do. An id outside 0..E-1 is an error on the CPU. On a
    GPU, where checking would synchronise with the host, that row of the result is NaN.

    Raises:
        ValueError: when the shapes do not agree.
    """
    call = MoeExperts(x, ids, weights, experts)
    if device := direct(x):
        return dispatch.select("moe_experts", device, call, _check)(call)
    _check(call)
    if experts.shared:
        out = moe_experts(x, ids, weights, experts.routed(), recompute=recompute)
        return _add_shared(out, x, experts.shared)
    x, gate_up, down = autocast(x, experts.gate_up, experts.down)
    if not recompute and torch.is_grad_enabled() and _keeps_hidden(x.device.type):
        out, _ = torch.ops.openmythos.moe_experts_hidden(x, ids, weights, gate_up, down)
        return out
    return torch.ops.openmythos.moe_experts(x, ids, weights, gate_up, down)
