"""The Triton backend on NVIDIA and AMD GPUs: what its kernels serve, and the functions that launch them.

Its entries are on "cuda", which also names ROCm's devices. With TRITON_INTERPRET=1, which runs kernels on CPU tensors,
they are on "cpu" as well, after every other backend. The first call imports Triton; importing this module does not.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from openmythos.dispatch import Supports, register
from openmythos.ops.loop_step import LoopStep, LoopStepBackward, LoopStepInPlace
from openmythos.ops.mla_attention import MlaAttention, MlaAttentionBackward
from openmythos.ops.moe import MoeExperts, MoeExpertsBackward, MoeRoute, MoeRouteBackward
from openmythos.ops.rms_norm import RmsNorm, RmsNormAdd, RmsNormBackward
from openmythos.ops.rope import Rope, RopeAppend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)

# Columns of a row that the norm kernel holds in registers.
MAX_NORM_WIDTH = 16384
# Columns of a row that the rope kernels hold in registers; rows are counted in 32 bits.
MAX_ROPE_HEAD, MAX_ROPE_LATENT, MAX_ROPE_ROWS = 256, 8192, 2**31
# CUDA's limit of a grid's second and third dimension; tokens and keys are in the first.
MAX_BATCH = 65535
# Limit of heads, so that offsets in a tile of all heads' keys and values, up to 128 rows of H (dn + dv), fit 32 bits.
MAX_HEADS = 32767
# Head widths that fit the attention kernels' tiles; the latent is read in chunks and may have any width.
MAX_HEAD, MAX_ROPE = 256, 128
# Rows are counted in 32 bits, with room for a tile past the last one.
MAX_ROWS = 2**30
# Offsets inside a tile of 128 rows have 32 bits, which limits the row stride. A head's weight is one tile.
MAX_STRIDE, MAX_WEIGHT_STRIDE, MAX_OFFSET = 2**24, 2**22, 2**31
# The routing kernels hold a row's scores, and the counters of a block of slots, in registers.
MAX_EXPERTS = 1024
# Pointers to shared experts are arguments of a kernel.
MAX_SHARED = 16
# The AMD compiler addresses smaller storages differently.
LARGE_BYTES = 2**31
# Positions of slots are counted in 32 bits, including those of blocks and tiles past the last one.
MAX_CHOICES = 2**30


@functools.cache
def missing() -> str | None:
    """The reason why no kernel can run in this process, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if importlib.util.find_spec("openmythos.triton_kernels") is None:
        return "openmythos.triton_kernels is not installed: install openmythos, editable or not"
    return None


def _common_reason(*tensors: torch.Tensor | None) -> str | None:
    """The reasons common to all ops: no Triton, an unsupported GPU or dtype, rows that are not contiguous."""
    reason = missing()
    if reason is not None:
        return reason
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] > 1 for tensor in given):
        return "a tensor's last dimension is not contiguous"
    return _dtype_reason(*given) or _target_reason(given[0])


def _dtype_reason(*tensors: torch.Tensor) -> str | None:
    """The same for gradients, which launchers make contiguous: an unsupported dtype."""
    wrong = [tensor.dtype for tensor in tensors if tensor.dtype not in DTYPES]
    return f"dtype {wrong[0]}: the kernels are float32, bfloat16 and float16" if wrong else None


def _target_reason(x: torch.Tensor) -> str | None:
    from openmythos.triton_kernels.launch import unsupported

    return unsupported(x)


def _rms_norm(call: RmsNorm | RmsNormAdd) -> str | None:
    if call.x.shape[-1] > MAX_NORM_WIDTH:
        return f"{call.x.shape[-1]} columns: the kernel takes up to {MAX_NORM_WIDTH}"
    if call.dtype is not None and call.dtype not in DTYPES:
        return f"dtype {call.dtype}: the kernels are float32, bfloat16 and float16"
    return _common_reason(call.x, call.weight)


def _rms_norm_add(call: RmsNormAdd) -> str | None:
    return _rms_norm(call) or _common_reason(call.residual)


def _rms_norm_backward(call: RmsNormBackward) -> str | None:
    return _dtype_reason(call.grad) or _common_reason(call.x, call.weight)


def _table_reason(cos_sin: torch.Tensor) -> str | None:
    return None if cos_sin.dtype == torch.float32 else "cos_sin is not float32"


def _rope(call: Rope) -> str | None:
    *rows, width = call.x.shape
    if width > MAX_ROPE_HEAD:
        return f"heads of size {width}: the kernel takes up to {MAX_ROPE_HEAD}"
    if torch.Size(rows).numel() >= MAX_ROPE_ROWS:
        return f"{torch.Size(rows).numel()} rows: one launch takes fewer than 2^31"
    return _common_reason(call.x) or _table_reason(call.cos_sin)


def _rope_append(call: RopeAppend) -> str | None:
    latent, width = call.weight.shape[0], call.down.shape[-1]
    if not 1 <= latent <= MAX_ROPE_LATENT:
        return f"a latent of width {latent}: the kernel takes 1 to {MAX_ROPE_LATENT}"
    if width - latent > MAX_ROPE_HEAD:
        return f"a rope key of width {width - latent}: the kernel takes up to {MAX_ROPE_HEAD}"
    return _common_reason(call.down, call.weight, call.cache_rows) or _table_reason(call.cos_sin)


def _loop_step(call: LoopStep | LoopStepInPlace) -> str | None:
    if call.h_out.dtype != torch.float32:
        return f"the state is {call.h_out.dtype}: the kernels keep it in float32"
    return _common_reason(call.h, call.e, call.block_out, call.h_out, call.cum_p, *call.params)


def _loop_step_in_place(call: LoopStepInPlace) -> str | None:
    return _loop_step(call) or _common_reason(call.h, call.x_next)


def _loop_step_backward(call: LoopStepBackward) -> str | None:
    if call.grad_out.dtype != torch.float32:
        return f"the state is {call.grad_out.dtype}: the kernels keep it in float32"
    return _dtype_reason(call.grad_h, call.grad_next) or _common_reason(
        call.h, call.e, call.block_out, call.cum_p, *call.params
    )


def _too_many_experts(experts: int) -> str | None:
    return f"{experts} experts: the kernels take up to {MAX_EXPERTS}" if experts > MAX_EXPERTS else None


def _moe_route(call: MoeRoute) -> str | None:
    return _too_many_experts(call.logits.shape[1]) or _common_reason(call.logits, call.bias)


def _moe_route_backward(call: MoeRouteBackward) -> str | None:
    if call.dtype not in DTYPES:
        return f"dtype {call.dtype}: the kernels are float32, bfloat16 and float16"
    return _too_many_experts(call.n_experts) or _common_reason(call.weights)


def _moe_experts(call: MoeExperts | MoeExpertsBackward) -> str | None:
    ids, shared, matrices = call.ids, call.experts.shared, list(call.experts.matrices())
    if len(shared) > MAX_SHARED:
        return f"{len(shared)} shared experts: the kernels take up to {MAX_SHARED}"
    if any(matrix.dtype != call.x.dtype for matrix in matrices):
        return "the tensors have different dtypes"
    for part in zip(*shared, strict=True):
        # A program selects one of these matrices at run time, so all must be addressed alike.
        if len({matrix.untyped_storage().nbytes() < LARGE_BYTES for matrix in part}) > 1:
            return "some of the shared experts' matrices have storages of 2 GiB or more, and others less"
    if ids.stride(-1) != 1 and ids.shape[-1] > 1:
        return "the last dimension of ids is not contiguous"
    if ids.numel() > MAX_CHOICES:
        return f"{ids.numel()} choices of rows: the kernels count up to {MAX_CHOICES}"
    return _too_many_experts(call.experts.count) or _common_reason(call.x, call.weights, *matrices)


def _moe_experts_backward(call: MoeExpertsBackward) -> str | None:
    if any(tensor is not None and tensor.dtype != call.x.dtype for tensor in (call.grad, call.hidden)):
        return "the tensors have different dtypes"
    return _moe_experts(call)


def _attention_sizes(call: MlaAttention | MlaAttentionBackward, keys: int) -> str | None:
    batch, new, heads, dn = call.q_nope.shape
    dr, dv = call.q_rope.shape[3], call.w_uv.shape[1]
    if batch > MAX_BATCH:
        return f"{batch} sequences: the kernels take up to {MAX_BATCH}"
    if heads > MAX_HEADS:
        return f"{heads} heads: the kernels take up to {MAX_HEADS}"
    if max(dn, dv) > MAX_HEAD:
        return f"head sizes dn={dn} and dv={dv}: the kernels take up to {MAX_HEAD}"
    if dr > MAX_ROPE:
        return f"dr={dr}: the kernels take up to {MAX_ROPE}"
    for what, rows in (("tokens", batch * new), ("rows of tokens and heads", new * heads), ("keys", keys)):
        if rows > MAX_ROWS:
            return f"{rows} {what}: the kernels take up to {MAX_ROWS}"
    return None


def _stride_reason(limit: int, **tensors: torch.Tensor) -> str | None:
    for name, tensor in tensors.items():
        if tensor.shape[1] > 1 and tensor.stride(1) >= limit:
            return f"rows of {name} {tensor.stride(1)} elements apart: the kernels take less than {limit}"
    return None


def _one_dtype(*tensors: torch.Tensor) -> str | None:
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return "the tensors have different dtypes"
    return _common_reason(*tensors)


def _lengths_reason(seq_lens: torch.Tensor | None) -> str | None:
    if seq_lens is not None and seq_lens.shape[0] > 1 and seq_lens.stride(0) != 1:
        return "seq_lens is not contiguous"
    return None


def _pages_reason(call: MlaAttention) -> str | None:
    if call.block_table is None:
        return None
    page = call.latent.shape[1]
    if page % 16:
        return f"pages of {page} tokens: the kernels take multiples of 16"
    if call.block_table.stride(-1) != 1 and call.block_table.shape[-1] > 1:
        return "block_table's rows are not contiguous"
    for name, pool in (("latent", call.latent), ("k_rope", call.k_rope)):
        if page * pool.stride(1) >= MAX_OFFSET:
            return f"pages of {name} of {page * pool.stride(1)} elements: the kernels take less than {MAX_OFFSET}"
    return None


def _mla(call: MlaAttention) -> str | None:
    return (
        _attention_sizes(call, call.total)
        or _pages_reason(call)
        or _stride_reason(MAX_STRIDE, latent=call.latent, k_rope=call.k_rope)
        or _stride_reason(MAX_WEIGHT_STRIDE, w_uk=call.w_uk, w_uv=call.w_uv)
        or _lengths_reason(call.seq_lens)
        or _one_dtype(call.q_nope, call.q_rope, call.latent, call.k_rope, call.w_uk, call.w_uv)
    )


def _mla_backward(call: MlaAttentionBackward) -> str | None:
    if call.grad.dtype != call.q_nope.dtype:
        return "the tensors have different dtypes"
    return (
        _attention_sizes(call, call.latent.shape[1])
        or _stride_reason(MAX_STRIDE, q_nope=call.q_nope, q_rope=call.q_rope, grad=call.grad, k_rope=call.k_rope)
        or _lengths_reason(call.seq_lens)
        or _one_dtype(call.q_nope, call.q_rope, call.latent, call.k_rope, call.w_uk, call.w_uv, call.out)
    )


def _register(op: str, folder: str, supports: Supports) -> None:
    """Register `triton_kernels.<folder>.<op>`, which the first call imports."""

    @functools.cache
    def found() -> Callable[[Any], Any]:
        return getattr(importlib.import_module(f"openmythos.triton_kernels.{folder}"), op)

    for device in DEVICES:
        register(op, "triton", lambda call: found()(call), device=device, supports=supports)


_register("rms_norm", "rms_norm", _rms_norm)
_register("rms_norm_add", "rms_norm", _rms_norm_add)
_register("rms_norm_backward", "rms_norm", _rms_norm_backward)
_register("rope", "rope", _rope)
_register("rope_append_", "rope", _rope_append)
_register("loop_step", "loop_step", _loop_step)
_register("loop_step_", "loop_step", _loop_step_in_place)
_register("loop_step_backward", "loop_step", _loop_step_backward)
_register("moe_route", "moe", _moe_route)
_register("moe_route_backward", "moe", _moe_route_backward)
_register("moe_experts", "moe", _moe_experts)
_register("moe_experts_hidden", "moe", _moe_experts)
_register("moe_experts_backward", "moe", _moe_experts_backward)
_register("mla_absorbed", "mla_attention", _mla)
_register("mla_decompressed", "mla_attention", _mla)
_register("mla_attention_backward", "mla_attention", _mla_backward)
