"""The ops for a caller that repeats a call with the same weights, shapes and dtypes, as the recurrent loop does.

At every call a public op checks shapes, whether autograd or a compiler records the call, and which backend serves it.
That takes microseconds, hundreds of times per decoded token. These functions take the weights and `device`, the result
of `direct` for the whole series (None: the public op at every call), and return the op as a function of its other
arguments. The backend is chosen at the first call, so a function must not outlive the forward that made it, and the
caller guarantees that shapes agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from openmythos import dispatch, ops
from openmythos.ops.linear import Linear, Swiglu
from openmythos.ops.loop_step import LoopParams, LoopStepInPlace
from openmythos.ops.mla_attention import MlaAttention, op_of
from openmythos.ops.moe.experts import MoeExperts
from openmythos.ops.moe.route import MoeRoute
from openmythos.ops.moe.weights import ExpertWeights
from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd
from openmythos.ops.rope import Rope, RopeAppend

Function = Callable[[torch.Tensor], torch.Tensor]


def repeated(op: str, device: str) -> Callable[[Any], Any]:
    """A function of typed calls of `op` that keeps the backend of its first call."""
    run: Callable[[Any], Any] | None = None

    def serve(call: Any) -> Any:
        nonlocal run
        if run is None:
            run = dispatch.select_for_all(op, device, call)
        return run(call)

    return serve


def linear(weight: torch.Tensor, device: str | None) -> Function:
    """x -> x @ weight^T."""
    if device is None:
        return lambda x: ops.linear(x, weight)
    serve = repeated("linear", device)
    return lambda x: serve(Linear(x, weight))


def swiglu(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, device: str | None) -> Function:
    """x -> down(silu(gate x) * up x)."""
    if device is None:
        return lambda x: ops.swiglu(x, gate, up, down)
    serve = repeated("swiglu", device)
    return lambda x: serve(Swiglu(x, gate, up, down))


def rms_norm(
    weight: torch.Tensor, eps: float, device: str | None
) -> Callable[[torch.Tensor, torch.dtype | None], torch.Tensor]:
    """(x, dtype) -> rms_norm(x), in the promoted dtype for dtype None."""
    if device is None:
        return lambda x, dtype: ops.rms_norm(x, weight, eps, dtype=dtype)
    serve = repeated("rms_norm", device)
    return lambda x, dtype: serve(RmsNorm(x, weight, eps, dtype))


def rms_norm_add(
    weight: torch.Tensor, eps: float, device: str | None
) -> Callable[[torch.Tensor, torch.Tensor, torch.dtype | None], tuple[torch.Tensor, torch.Tensor]]:
    """(x, residual, dtype) -> (rms_norm(x + residual), x + residual)."""
    if device is None:
        return lambda x, residual, dtype: ops.rms_norm_add(x, residual, weight, eps, dtype=dtype)
    serve = repeated("rms_norm_add", device)
    return lambda x, residual, dtype: serve(RmsNormAdd(x, residual, weight, eps, dtype))


def rope(device: str | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(x, cos_sin) -> x rotated."""
    if device is None:
        return ops.rope
    serve = repeated("rope", device)
    return lambda x, cos_sin: serve(Rope(x, cos_sin))


def rope_append_(
    weight: torch.Tensor, eps: float, device: str | None
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], None]:
    """(down, cos_sin, cache_rows, position) -> None. Each call is dispatched, since slots differ in alignment."""

    def append(
        down: torch.Tensor, cos_sin: torch.Tensor, cache_rows: torch.Tensor, position: torch.Tensor | None
    ) -> None:
        if device is None:
            ops.rope_append_(down, weight, cos_sin, cache_rows, position, eps=eps)
            return
        call = RopeAppend(down, weight, cos_sin, cache_rows, position, eps)
        dispatch.select("rope_append_", device, call)(call)

    return append


def mla_attention(
    w_uk: torch.Tensor, w_uv: torch.Tensor, scale: float, device: str | None
) -> Callable[..., torch.Tensor]:
    """(q_nope, q_rope, latent, k_rope, causal, seq_lens) -> out. Each call is dispatched, as in `rope_append_`."""

    def attend(
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        causal: bool,
        seq_lens: torch.Tensor | None,
    ) -> torch.Tensor:
        if device is None:
            options = {"scale": scale, "causal": causal, "seq_lens": seq_lens}
            return ops.mla_attention(q_nope, q_rope, latent, k_rope, w_uk, w_uv, **options)
        call = MlaAttention(q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens)
        out, _ = dispatch.select(op_of("auto", call), device, call)(call)
        return out

    return attend


def moe_route(
    bias: torch.Tensor | None, k: int, device: str | None
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """logits -> (ids, weights, counts)."""
    if device is None:
        return lambda logits: ops.moe_route(logits, bias, k)
    serve = repeated("moe_route", device)
    return lambda logits: serve(MoeRoute(logits, bias, k))


def moe_experts(
    experts: ExpertWeights, device: str | None, *, recompute: bool = False
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """(x, ids, weights) -> the weighted sum of the experts."""
    if device is None:
        return lambda x, ids, weights: ops.moe_experts(x, ids, weights, experts, recompute=recompute)
    serve = repeated("moe_experts", device)
    return lambda x, ids, weights: serve(MoeExperts(x, ids, weights, experts))


def loop_step_(params: LoopParams, device: str, *, threshold: float, eps: float, loop_dim: int) -> Callable[..., None]:
    """(h, e, block_out, h_out, cum_p, t, x_next) -> None, in place; t is an int."""
    serve = repeated("loop_step_", device)

    def step(
        h: torch.Tensor,
        e: torch.Tensor,
        block_out: torch.Tensor,
        h_out: torch.Tensor,
        cum_p: torch.Tensor,
        t: int,
        x_next: torch.Tensor,
    ) -> None:
        serve(LoopStepInPlace(h, e, block_out, h_out, cum_p, *params, t, None, threshold, eps, loop_dim, x_next))

    return step
