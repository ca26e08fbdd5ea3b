"""The CPU backend: C++ kernels of `openmythos_native`, in float32 and bfloat16, beside oneDNN through torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openmythos import reference
from openmythos.backends.calls import as_rows, loop_step, loop_step_, mla_attention, rms_norm, rms_norm_add
from openmythos.backends.flat import register_experts, register_flat
from openmythos.backends.library import missing

native = torch.ops.openmythos_native
DTYPES = (torch.float32, torch.bfloat16)

# Rows up to which the kernel beats oneDNN on a CPU with bfloat16 instructions, measured at the model's widths
# (docs/performance.md); float32 has no limit.
LINEAR_ROWS_BF16 = 48


def _why_not(*tensors: torch.Tensor | None) -> str | None:
    """The reason that holds for every op: no library, a dtype without a kernel, or rows that are not contiguous."""
    reason = missing()
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype}: the kernels are float32 and bfloat16"
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return "a tensor's last dimension is not contiguous"
    return None


def _one_dtype(*tensors: torch.Tensor) -> str | None:
    reason = _why_not(*tensors)
    if reason is None and any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return "the tensors have different dtypes"
    return reason


def _linear_supports(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    rows = x.numel() // max(x.shape[-1], 1)
    reason = _one_dtype(x, weight)
    # without bfloat16 instructions oneDNN converts element by element: a seventh of the kernel's speed with AVX2
    if reason is None and x.dtype == torch.bfloat16 and rows > LINEAR_ROWS_BF16 and native.isa() == "avx512bf16":
        return f"{rows} rows of bfloat16: oneDNN is as fast or faster above {LINEAR_ROWS_BF16}"
    return reason


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    native.linear(as_rows(x), weight, as_rows(out))
    return out


def _swiglu_supports(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> str | None:
    return _one_dtype(x, gate, up, down)


def _swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    out = x.new_empty((*x.shape[:-1], down.shape[0]))
    native.swiglu(as_rows(x), gate, up, down, as_rows(out))
    return out


def _rope_supports(x: torch.Tensor, cos_sin: torch.Tensor, inverse: bool = False) -> str | None:
    return _why_not(x) or ("cos_sin is not float32" if cos_sin.dtype != torch.float32 else None)


def _rope(x: torch.Tensor, cos_sin: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    if inverse:
        cos_sin = torch.stack((cos_sin[..., 0], -cos_sin[..., 1]), dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype)
    native.rope(x, cos_sin.contiguous(), out)
    return out


def _append_supports(
    down: torch.Tensor,
    weight: torch.Tensor,
    cos_sin: torch.Tensor,
    rows: torch.Tensor,
    position: torch.Tensor | None,
    eps: float,
) -> str | None:
    return _rope_supports(down, cos_sin) or _why_not(weight)


def _append(
    down: torch.Tensor,
    weight: torch.Tensor,
    cos_sin: torch.Tensor,
    rows: torch.Tensor,
    position: torch.Tensor | None,
    eps: float,
) -> None:
    new = down.shape[1]
    width = weight.shape[0]
    latent, key = rms_norm(down[..., :width], weight, eps), down[..., None, width:]
    if position is None:
        rows[:, :new, :width] = latent
        rows[:, :new, width:] = _rope(key, cos_sin[:new])[:, :, 0]
        return
    where = reference.places(position, new)
    for sequence, place in enumerate(where):
        rows[sequence, place, :width] = latent[sequence].to(rows.dtype)
        rotated = _rope(key[sequence : sequence + 1], cos_sin[place])
        rows[sequence, place, width:] = rotated[0, :, 0].to(rows.dtype)


def _norm_supports(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> str | None:
    if dtype is not None and dtype not in DTYPES:
        return f"dtype {dtype}: the kernels are float32 and bfloat16"
    return _why_not(x, weight)


def _norm_add_supports(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> str | None:
    return _norm_supports(x, weight, eps, dtype) or _why_not(residual)


def _route_supports(logits: torch.Tensor, bias: torch.Tensor | None, k: int) -> str | None:
    return _why_not(logits)


def _moe_route(
    logits: torch.Tensor, bias: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (logits.shape[0], k)
    ids, weights = torch.empty(shape, dtype=torch.int32), torch.empty(shape, dtype=torch.float32)
    counts = torch.empty(logits.shape[1], dtype=torch.int32)
    native.moe_route(logits, None if bias is None else bias.float(), ids, weights, counts)
    return ids, weights, counts


def _experts_supports(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> str | None:
    return _one_dtype(x, gate_up, down)


def _moe_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    native.moe_experts(x, ids.to(torch.int32), weights.to(torch.float32), gate_up, down, out)
    return out


def _moe_supports(x, ids, weights, gate_up, down, shared) -> str | None:
    width = gate_up.shape[2]
    for gate, _, _ in shared:
        if gate.shape[0] % width:
            return f"a shared expert of width {gate.shape[0]} is not a multiple of the experts' {width}"
    return _one_dtype(x, gate_up, down, *(matrix for expert in shared for matrix in expert))


def _moe(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    parts = [list(part) for part in zip(*shared, strict=True)]
    native.moe(x, ids.to(torch.int32), weights.to(torch.float32), gate_up, down, *parts, out)
    return out


def _mla_supports(
    q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens=None, block_table=None, form=""
) -> str | None:
    if block_table is not None:
        return "block_table: the CPU kernel has no paged cache"
    return _one_dtype(q_nope, q_rope, latent, k_rope, w_uk, w_uv)


def _step_reason(h, e, block_out, h_out, cum_p, x_next: torch.Tensor | None, *rest) -> str | None:
    reason = _why_not(h, e, block_out, h_out, cum_p, x_next)
    if reason is None and any(tensor is not None and tensor.dtype != torch.float32 for tensor in (h_out, *rest[:8])):
        return "the state and the parameters have to be float32"
    return reason


def _step_supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    return _step_reason(h, e, block_out, h_out, cum_p, None, *rest)


def _step_in_place_supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    return _step_reason(h, e, block_out, h_out, cum_p, rest[8], *rest)


register_flat("linear", "cpp", _linear, device="cpu", supports=_linear_supports)
register_flat("swiglu", "cpp", _swiglu, device="cpu", supports=_swiglu_supports)
register_flat("rope", "cpp", _rope, device="cpu", supports=_rope_supports)
register_flat("rope_append_", "cpp", _append, device="cpu", supports=_append_supports)
register_flat("rms_norm", "cpp", rms_norm, device="cpu", supports=_norm_supports)
register_flat("rms_norm_add", "cpp", rms_norm_add, device="cpu", supports=_norm_add_supports)
register_flat("moe_route", "cpp", _moe_route, device="cpu", supports=_route_supports)
register_experts("cpp", _moe_experts, _experts_supports, _moe, _moe_supports, "cpu")
register_flat("mla_absorbed", "cpp", mla_attention, device="cpu", supports=_mla_supports)
register_flat("mla_decompressed", "cpp", mla_attention, device="cpu", supports=_mla_supports)
register_flat("loop_step", "cpp", loop_step, device="cpu", supports=_step_supports)
register_flat("loop_step_", "cpp", loop_step_, device="cpu", supports=_step_in_place_supports)
