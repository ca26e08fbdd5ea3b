"""The native GPU backend: CUDA and HIP C++ kernels of `openmythos_native`, in float32, bfloat16 and float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openmythos.backends.calls import (
    loop_step,
    loop_step_,
    mla_attention,
    moe,
    moe_experts,
    moe_route,
    rms_norm,
    rms_norm_add,
)
from openmythos.backends.flat import register_experts, register_flat
from openmythos.backends.library import gpu_missing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A row stays in one block's registers; see csrc/runtime/plans.h.
MAX_WIDTH, MAX_RANK, MAX_LOOP_DIM = 16384, 256, 8192
MAX_ROWS, MAX_SCALES, MAX_THREADS = 2**31, 2**20, 2**32
# The experts' kernels stream the weights of few rows, and multiply blocks of more; see csrc/gpu/params.h.
MAX_MOE_ROWS, MAX_MOE_CHOICES, MAX_MOE_SHARED, MAX_MOE_EXPERTS, MAX_MOE_WIDTH = 16, 256, 16, 1024, 2**22
# (dc, dr) that the attention kernels have instances for, the widest head, and the most new tokens and heads.
LATENTS = ((256, 32), (384, 32), (512, 64), (1024, 64))
MAX_HEAD, MAX_NEW, MAX_HEADS = 256, 16, 65535
# (dn, dr, dv) of the decompressed form
HEADS = ((64, 32, 64), (96, 32, 96), (128, 64, 128))


def _why_not(*tensors: torch.Tensor | None) -> str | None:
    """The reason that holds for every op: no code for the device, a dtype without a kernel, strided columns.

    The first tensor is there. Asked are the cheaper ones of two questions, since this runs before every launch.
    """
    index = tensors[0].get_device()
    reason = gpu_missing(max(index, 0))
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype}: the kernels are float32, bfloat16 and float16"
        if tensor.get_device() != index:
            return f"tensors on {tensors[0].device} and {tensor.device}"
        if not tensor.is_contiguous() and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return "a tensor's last dimension is not contiguous"
    return None


def _size_reason(x: torch.Tensor) -> str | None:
    width = x.shape[-1]
    if not 1 <= width <= MAX_WIDTH:
        return f"rows of {width} columns: the kernels hold 1 to {MAX_WIDTH}"
    rows = x.numel() // width
    return f"{rows} rows: one launch takes fewer than 2^31" if rows >= MAX_ROWS else None


def _norm_supports(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None) -> str | None:
    if dtype is not None and dtype not in DTYPES:
        return f"dtype {dtype}: the kernels are float32, bfloat16 and float16"
    return _why_not(x, weight) or _size_reason(x)


def _norm_add_supports(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype | None = None
) -> str | None:
    return _norm_supports(x, weight, eps, dtype) or _why_not(x, residual)


def _step_reason(h, e, block_out, h_out, cum_p, x_next: torch.Tensor | None, *rest) -> str | None:
    params, loop_dim, float32 = rest[:8], rest[-1], torch.float32
    reason = _why_not(h, e, block_out, h_out, cum_p, x_next) or _size_reason(h)
    if reason is not None:
        return reason
    for tensor in (h_out, cum_p, *params):
        if tensor is not None and tensor.dtype is not float32:
            return "the state and the parameters have to be float32"
    rank, scales = params[2].shape[0], params[3].shape[0]
    if rank > MAX_RANK:
        return f"rank {rank}: the kernel takes up to {MAX_RANK}"
    if scales >= MAX_SCALES:
        return f"{scales} rows of lora_scale: the kernel takes fewer than 2^20"
    return f"loop_dim {loop_dim}: the kernel takes up to {MAX_LOOP_DIM}" if loop_dim > MAX_LOOP_DIM else None


def _step_supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    return _step_reason(h, e, block_out, h_out, cum_p, None, *rest)


def _step_in_place_supports(h, e, block_out, h_out, cum_p, *rest) -> str | None:
    return _step_reason(h, e, block_out, h_out, cum_p, rest[8], *rest)


def _route_supports(logits: torch.Tensor, bias: torch.Tensor | None, k: int) -> str | None:
    rows, experts = logits.shape
    if experts > MAX_MOE_EXPERTS:
        return f"{experts} experts: the kernel takes up to {MAX_MOE_EXPERTS}"
    if rows >= MAX_THREADS // 32:
        return f"{rows} rows: one launch takes fewer than 2^27"
    return _why_not(logits, bias)


def _many_reason(
    x: torch.Tensor,
    k: int,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> str | None:
    """Why the kernels that multiply blocks of rows do not serve the call."""
    rows, what = x.shape[0], f"{x.shape[0]} rows with {k} choices of experts each"
    if x.dtype == torch.float32:
        return f"{what} in float32, which has no matrix instructions: the kernels take {MAX_MOE_ROWS} rows"
    experts, columns, width = down.shape
    if experts > MAX_MOE_EXPERTS:
        return f"{what} and {experts} experts: the kernels take up to {MAX_MOE_EXPERTS}"
    widths = [gate.shape[0] for gate, _, _ in shared]
    if any(size % 8 for size in (columns, width, *widths)):
        return f"{what} and sizes that are no multiples of 8: the kernels take {MAX_MOE_ROWS} rows"
    tiles, dense = (rows * k + min(experts, rows * k) * 127) // 128, -(-rows // 128) if shared else 0
    up_blocks = tiles * -(-width // 64) + dense * sum(-(-size // 64) for size in widths)
    blocks = max(rows, up_blocks, (tiles + dense) * -(-columns // 128))
    if rows * (k + 1) >= MAX_ROWS or blocks >= MAX_THREADS // 256:
        return f"{what}: more than one launch takes"
    matrices = {f"shared[{s}][{i}]": part for s, parts in enumerate(shared) for i, part in enumerate(parts)}
    return _alignment_reason(x=x, gate_up=gate_up, down=down, **matrices)


def _experts_supports(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = (),
) -> str | None:
    if len(shared) > MAX_MOE_SHARED:
        return f"{len(shared)} shared experts: the kernels take up to {MAX_MOE_SHARED}"
    matrices = [gate_up, down, *(matrix for expert in shared for matrix in expert)]
    if any(matrix.dtype != x.dtype for matrix in matrices):
        return "the tensors have different dtypes"
    if ids.dtype not in (torch.int32, torch.int64):
        return f"ids of {ids.dtype}: the kernels take int32 and int64"
    if ids.device != x.device:
        return f"ids is on {ids.device}, and the tensors on {x.device}"
    if ids.stride(-1) != 1 and ids.shape[-1] > 1:
        return "the last dimension of ids is not contiguous"
    for width in (*down.shape[1:], *(gate.shape[0] for gate, _, _ in shared)):
        if not 1 <= width <= MAX_MOE_WIDTH:
            return f"experts of width {width}: the kernels take 1 to {MAX_MOE_WIDTH}"
    reason = _why_not(x, weights, *matrices)
    if reason is not None or (ids.shape[0] <= MAX_MOE_ROWS and ids.numel() <= MAX_MOE_CHOICES):
        return reason
    return _many_reason(x, ids.shape[1], gate_up, down, shared)


def _alignment_reason(**tensors: torch.Tensor) -> str | None:
    for name, tensor in tensors.items():
        aligned, element = tensor.data_ptr() % 16 == 0, tensor.element_size()
        for step, size in zip(tensor.stride()[:-1], tensor.shape, strict=False):
            aligned = aligned and (size <= 1 or step * element % 16 == 0)
        if not aligned:
            return f"rows of {name} do not all begin at 16 bytes"
    return None


def _index_reason(device: torch.device, **tensors: torch.Tensor | None) -> str | None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in (torch.int32, torch.int64):
            return f"{name} is {tensor.dtype}: the kernels take int32 and int64"
        if tensor.device != device:
            return f"{name} is on {tensor.device}, and the tensors on {device}"
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"{name}'s last dimension is not contiguous"
    return None


def _absorbed_reason(new: int, dn: int, dr: int, dc: int, dv: int) -> str | None:
    if (dc, dr) not in LATENTS:
        return f"a latent of {dc} + {dr} columns: the kernels take {', '.join(f'{a} + {b}' for a, b in LATENTS)}"
    if max(dn, dv) > MAX_HEAD:
        return f"head sizes dn={dn} and dv={dv}: the kernels take up to {MAX_HEAD}"
    return f"{new} new tokens: the kernels of the absorbed form are for up to {MAX_NEW}" if new > MAX_NEW else None


def _decompressed_reason(dtype: torch.dtype, dn: int, dr: int, dc: int, dv: int) -> str | None:
    if dtype not in (torch.bfloat16, torch.float16):
        return f"dtype {dtype}: the kernels of the decompressed form are bfloat16 and float16"
    if (dn, dr, dv) not in HEADS:
        return f"heads of (dn, dr, dv)={(dn, dr, dv)}: the kernels take {', '.join(map(str, HEADS))}"
    return f"a latent of {dc} columns: the kernels take a multiple of 8" if dc % 8 else None


def _mla_supports(
    q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens=None, block_table=None, form="decompressed"
) -> str | None:
    batch, new, heads, dn = q_nope.shape
    dc, dr, dv = latent.shape[2], k_rope.shape[2], w_uv.shape[1]
    total = latent.shape[1] if block_table is None else latent.shape[1] * block_table.shape[1]
    absorbed = form == "absorbed"
    reason = _absorbed_reason(new, dn, dr, dc, dv) if absorbed else _decompressed_reason(q_nope.dtype, dn, dr, dc, dv)
    if reason is not None:
        return reason
    if block_table is not None and latent.shape[1] == 0:
        return "pages of 0 keys"
    if not absorbed and batch * (total + 64) >= MAX_ROWS:
        return f"{batch} sequences of {total} keys: more than one launch takes"
    if heads > MAX_HEADS or batch * new * heads >= MAX_ROWS or total >= MAX_ROWS - 1024:
        return f"{batch} sequences of {new} tokens, {heads} heads and {total} keys: more than one launch takes"
    tensors, dtype = (q_nope, q_rope, latent, k_rope, w_uk, w_uv), q_nope.dtype
    for tensor in tensors:
        if tensor.dtype != dtype:
            return "the tensors have different dtypes"
    vectors = {"latent": latent, "k_rope": k_rope, "w_uk": w_uk, "w_uv": w_uv}
    if not absorbed:
        vectors |= {"q_nope": q_nope, "q_rope": q_rope}
    return (
        _why_not(*tensors)
        or _index_reason(latent.device, seq_lens=seq_lens, block_table=block_table)
        or _alignment_reason(**vectors)
    )


register_flat("rms_norm", "cpp", rms_norm, device="cuda", supports=_norm_supports)
register_flat("rms_norm_add", "cpp", rms_norm_add, device="cuda", supports=_norm_add_supports)
register_flat("loop_step", "cpp", loop_step, device="cuda", supports=_step_supports)
register_flat("loop_step_", "cpp", loop_step_, device="cuda", supports=_step_in_place_supports)
register_flat("moe_route", "cpp", moe_route, device="cuda", supports=_route_supports)
register_experts("cpp", moe_experts, _experts_supports, moe, _experts_supports, "cuda")
register_flat("mla_absorbed", "cpp", mla_attention, device="cuda", supports=_mla_supports)
register_flat("mla_decompressed", "cpp", mla_attention, device="cuda", supports=_mla_supports)
