"""The C++ backend: CPU kernels and CUDA and HIP kernels, all in the library `openmythos_native`.

Each op has one function for both kinds of device, `openmythos_native::<op>`, which writes into outputs that are
allocated here, and `openmythos_native::<op>_reason`, which says why it cannot run a call, or "".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from openmythos.backends.library import cpu_isa, not_loaded
from openmythos.dispatch import register
from openmythos.ops.linear import Linear, Swiglu
from openmythos.ops.loop_step import LoopStep, LoopStepInPlace
from openmythos.ops.mla_attention import MlaAttention
from openmythos.ops.moe import MoeExperts, MoeRoute
from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd
from openmythos.ops.rope import Rope, RopeAppend, reference

NAMESPACE = "openmythos_native"
# Up to this number of rows the kernel beats oneDNN on a CPU with bfloat16 instructions, measured at the model's widths
# (docs/performance.md); float32 has no limit.
LINEAR_ROWS_BF16 = 48
# Dtypes that a result can have; the library checks every other dtype.
CPU_DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (*CPU_DTYPES, torch.float16)

Inputs = tuple[Any, ...]


@functools.cache
def _native(name: str) -> Callable[..., Any]:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _supports(op: str, inputs: Callable[[Any], Inputs]) -> Callable[[Any], str | None]:
    """`supports` of `op`: the reason that the library gives."""

    def supports(call: Any) -> str | None:
        return not_loaded() or _native(f"{op}_reason")(*inputs(call)) or None

    return supports


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., D) as (N, D)."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _empty_like(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A third of what torch.empty(x.shape, dtype=, device=) costs.
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _linear_supports(call: Linear) -> str | None:
    reason = not_loaded()
    if reason is not None:
        return reason
    x = call.x
    if x.dtype == torch.bfloat16 and x.numel() > LINEAR_ROWS_BF16 * x.shape[-1] and cpu_isa() == "avx512bf16":
        # Without bfloat16 instructions oneDNN converts element by element and has a seventh of the kernel's speed.
        return f"{x.numel() // x.shape[-1]} rows of bfloat16: oneDNN is as fast or faster above {LINEAR_ROWS_BF16}"
    return _native("linear_reason")(_rows(x), call.weight) or None


def linear(call: Linear) -> torch.Tensor:
    """x @ weight^T."""
    out = call.x.new_empty((*call.x.shape[:-1], call.weight.shape[0]))
    _native("linear")(_rows(call.x), call.weight, _rows(out))
    return out


def _swiglu_inputs(call: Swiglu) -> Inputs:
    return _rows(call.x), call.gate, call.up, call.down


def swiglu(call: Swiglu) -> torch.Tensor:
    """down(silu(gate x) * up x)."""
    out = call.x.new_empty((*call.x.shape[:-1], call.down.shape[0]))
    _native("swiglu")(*_swiglu_inputs(call), _rows(out))
    return out


def _norm_reason(call: RmsNorm | RmsNormAdd, residual: torch.Tensor | None) -> str | None:
    reason = not_loaded()
    if reason is not None:
        return reason
    x, dtype = call.x, call.dtype
    if dtype is not None and dtype not in (GPU_DTYPES if x.is_cuda else CPU_DTYPES):
        return f"dtype {dtype}: the kernels do not write it"
    return _native("rms_norm_reason")(_rows(x), residual, call.weight, call.eps) or None


def _norm_supports(call: RmsNorm) -> str | None:
    return _norm_reason(call, None)


def _norm_add_supports(call: RmsNormAdd) -> str | None:
    return _norm_reason(call, _rows(call.residual))


def rms_norm(call: RmsNorm) -> torch.Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight."""
    x, weight = call.x, call.weight
    out = _empty_like(x, call.dtype or torch.promote_types(x.dtype, weight.dtype))
    _native("rms_norm")(_rows(x), None, weight, call.eps, _rows(out), None)
    return out


def rms_norm_add(call: RmsNormAdd) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm of s = x + residual, and s."""
    x, residual, weight = call.x, call.residual, call.weight
    total = _empty_like(x, torch.promote_types(x.dtype, residual.dtype))
    out = _empty_like(x, call.dtype or torch.promote_types(total.dtype, weight.dtype))
    _native("rms_norm")(_rows(x), _rows(residual), weight, call.eps, _rows(out), _rows(total))
    return out, total


def _rope_inputs(call: Rope) -> Inputs:
    cos_sin = call.cos_sin
    if call.inverse:
        cos_sin = torch.stack((cos_sin[..., 0], -cos_sin[..., 1]), dim=-1)
    return call.x, cos_sin.contiguous()


def rope(call: Rope) -> torch.Tensor:
    """(x0 + i x1) * (cos + i sin) on adjacent pairs."""
    out = _empty_like(call.x, call.x.dtype)
    _native("rope")(*_rope_inputs(call), out)
    return out


def _append_supports(call: RopeAppend) -> str | None:
    reason = not_loaded()
    if reason is not None:
        return reason
    latent, key = _latent_and_key(call)
    norm = _native("rms_norm_reason")(_rows(latent), None, call.weight, call.eps)
    return norm or _native("rope_reason")(key, call.cos_sin[: key.shape[1]].contiguous()) or None


def _latent_and_key(call: RopeAppend) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent (B, T, dc) and the rope key (B, T, 1, dr) in `down`."""
    width = call.weight.shape[0]
    return call.down[..., :width], call.down[..., None, width:]


def rope_append_(call: RopeAppend) -> None:
    """Write [rms_norm(latent) * weight | rope(key)] into rows of the cache."""
    latent, key = _latent_and_key(call)
    new, width, rows = key.shape[1], latent.shape[2], call.cache_rows
    normed = rms_norm(RmsNorm(latent, call.weight, call.eps))
    if call.position is None:
        rows[:, :new, :width] = normed
        rows[:, :new, width:] = rope(Rope(key, call.cos_sin[:new]))[:, :, 0]
        return
    for sequence, place in enumerate(reference.places(call.position, new)):
        rows[sequence, place, :width] = normed[sequence].to(rows.dtype)
        rotated = rope(Rope(key[sequence : sequence + 1], call.cos_sin[place]))
        rows[sequence, place, width:] = rotated[0, :, 0].to(rows.dtype)


def _route_inputs(call: MoeRoute) -> Inputs:
    bias = call.bias
    if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
        bias = bias.float().contiguous()
    return call.logits, bias, call.k


def moe_route(call: MoeRoute) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Top-k experts of each row, their weights, and the number of rows of each expert."""
    (rows, experts), device = call.logits.shape, call.logits.device
    ids = torch.empty((rows, call.k), dtype=torch.int32, device=device)
    weights = torch.empty((rows, call.k), dtype=torch.float32, device=device)
    counts = torch.empty(experts, dtype=torch.int32, device=device)
    _native("moe_route")(*_route_inputs(call), ids, weights, counts)
    return ids, weights, counts


def _experts_inputs(call: MoeExperts) -> Inputs:
    experts = call.experts
    gates, ups, downs = [], [], []
    for gate, up, down in experts.shared:
        gates.append(gate)
        ups.append(up)
        downs.append(down)
    weights = call.weights if call.weights.dtype is torch.float32 else call.weights.float()
    return call.x, call.ids, weights, experts.gate_up, experts.down, gates, ups, downs


def moe_experts(call: MoeExperts) -> torch.Tensor:
    """The routed experts' weighted sum plus the shared experts."""
    out = _empty_like(call.x, call.x.dtype)
    _native("moe_experts")(*_experts_inputs(call), out)
    return out


def _attention(op: str) -> Callable[[MlaAttention], tuple[torch.Tensor, torch.Tensor]]:
    def run(call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
        batch, new, heads, _ = call.q_nope.shape
        out = call.q_nope.new_empty((batch, new, heads, call.w_uv.shape[1]))
        lse = torch.empty((batch, heads, new), dtype=torch.float32, device=out.device)
        _native(op)(*call, out, lse)
        return out, lse

    return run


mla_absorbed = _attention("mla_absorbed")
mla_decompressed = _attention("mla_decompressed")


def _step_inputs(call: LoopStep) -> Inputs:
    return *call, None


def loop_step(call: LoopStep) -> tuple[torch.Tensor, ...]:
    """The new h, h_out and cum_p and the next block input, which is empty without norm_w."""
    last = call.norm_w is None
    x_next = call.e.new_empty((0,) if last else call.h.shape)
    new = [_empty_like(part, part.dtype) for part in (call.h, call.h_out, call.cum_p)]
    _native("loop_step")(*call, None if last else x_next, *new)
    return *new, x_next


def loop_step_(call: LoopStepInPlace) -> None:
    """`loop_step` in place."""
    _native("loop_step")(*call, call.h, call.h_out, call.cum_p)


for _device in ("cpu", "cuda"):
    register("rms_norm", "cpp", rms_norm, device=_device, validates=True, supports=_norm_supports)
    register("rms_norm_add", "cpp", rms_norm_add, device=_device, validates=True, supports=_norm_add_supports)
    register(
        "loop_step",
        "cpp",
        loop_step,
        device=_device,
        validates=True,
        supports=_supports("loop_step", _step_inputs),
    )
    register("loop_step_", "cpp", loop_step_, device=_device, validates=True, supports=_supports("loop_step", tuple))
    register(
        "moe_route", "cpp", moe_route, device=_device, validates=True, supports=_supports("moe_route", _route_inputs)
    )
    register(
        "moe_experts",
        "cpp",
        moe_experts,
        device=_device,
        validates=True,
        supports=_supports("moe_experts", _experts_inputs),
    )
    for _op, _run in (("mla_absorbed", mla_absorbed), ("mla_decompressed", mla_decompressed)):
        register(_op, "cpp", _run, device=_device, validates=True, supports=_supports(_op, tuple))
register("linear", "cpp", linear, device="cpu", supports=_linear_supports)
register("swiglu", "cpp", swiglu, device="cpu", validates=True, supports=_supports("swiglu", _swiglu_inputs))
register("rope", "cpp", rope, device="cpu", validates=True, supports=_supports("rope", _rope_inputs))
register("rope_append_", "cpp", rope_append_, device="cpu", supports=_append_supports)
