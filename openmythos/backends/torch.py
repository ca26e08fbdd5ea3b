"""Library kernels through torch: oneDNN, cuBLAS or hipBLASLt, flash attention, and CUTLASS's grouped GEMM."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from openmythos.dispatch import register
from openmythos.ops.linear import Linear, Swiglu, reference
from openmythos.ops.mla_attention import MlaAttention
from openmythos.ops.moe import MoeExperts

FLASH_DTYPES = (torch.bfloat16, torch.float16)
MAX_FLASH_HEAD = 256
GROUPED_ALIGNMENT = 16


def linear(call: Linear) -> torch.Tensor:
    """x @ weight^T by oneDNN, cuBLAS or hipBLASLt."""
    return reference.linear(call.x, call.weight)


def swiglu(call: Swiglu) -> torch.Tensor:
    """down(silu(gate x) * up x) by three products of the same libraries."""
    return reference.swiglu(call.x, call.gate, call.up, call.down)


def _flash_device_reason(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"torch's flash attention is called on GPUs only, not on {device.type}"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is None:
        old = properties.major < 8
        return f"sm{properties.major}{properties.minor}: torch's flash attention needs sm80" if old else None
    arch = properties.gcnArchName.split(":")[0]
    if arch.startswith("gfx11") and os.environ.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") != "1":
        return f"{arch}: set TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 for torch's flash attention"
    return None


def _flash_supports(call: MlaAttention) -> str | None:
    if call.seq_lens is not None or call.block_table is not None:
        return "ragged lengths and paged caches"
    tensors = (call.q_nope, call.q_rope, call.latent, call.k_rope, call.w_uk, call.w_uv)
    if call.q_nope.dtype not in FLASH_DTYPES or any(tensor.dtype != call.q_nope.dtype for tensor in tensors):
        return "torch's flash attention takes tensors of one 16-bit dtype"
    (batch, new, _, dn), dr, dv, total = call.q_nope.shape, call.q_rope.shape[3], call.w_uv.shape[1], call.total
    if 0 in (batch, new, total):
        return "no sequences, queries or keys"
    if call.causal and new not in (1, total):
        return f"{new} queries for {total} keys: torch's causal mask is aligned at the top left"
    if (dn + dr) % 8 or dn + dr > MAX_FLASH_HEAD or dv > dn + dr:
        limits = f"a key must have a multiple of 8 channels up to {MAX_FLASH_HEAD}, a value at most as many"
        return f"dn + dr = {dn + dr}, dv = {dv}: {limits}"
    return _flash_device_reason(call.q_nope.device)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> tuple[torch.Tensor, ...]:
    """(B, H, T, d) tensors -> out and logsumexp (B, H, T).

    scaled_dot_product_attention returns no logsumexp and silently falls back to a slow path, so the kernel is called
    directly.
    """
    if q.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return found[0], found[1]


def flash_attention(call: MlaAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """mla_decompressed: keys and values are rebuilt, and the rope key is copied to each head.

    Values are padded to the keys' width, as the kernel requires.
    """
    latent, (batch, new, heads, dn) = call.latent, call.q_nope.shape
    total, dv, width = latent.shape[1], call.w_uv.shape[1], dn + call.q_rope.shape[3]
    keys, values = torch.empty((2, batch, total, heads, width), dtype=latent.dtype, device=latent.device)
    keys[..., :dn] = torch.einsum("bsc,hnc->bshn", latent, call.w_uk)
    keys[..., dn:] = call.k_rope[:, :, None]
    values[..., :dv] = torch.einsum("bsc,hvc->bshv", latent, call.w_uv)
    values[..., dv:] = 0
    queries = torch.cat((call.q_nope, call.q_rope), dim=-1)
    heads_first = [part.transpose(1, 2) for part in (queries, keys, values)]
    out, lse = _flash(*heads_first, call.causal and new == total, call.scale)
    return out[..., :dv].transpose(1, 2).contiguous(), lse.contiguous()


def _grouped_supports(call: MoeExperts) -> str | None:
    x, gate_up, down = call.x, call.experts.gate_up, call.experts.down
    if call.experts.shared:
        return "grouped_mm computes the routed experts only"
    if not x.is_cuda or torch.version.hip:
        return "grouped_mm is one kernel on NVIDIA's GPUs only, elsewhere a loop over experts that waits for the host"
    if torch.cuda.get_device_capability(x.device) < (9, 0):
        return "grouped_mm is one kernel from sm90 on, before that a loop over experts that waits for the host"
    if any(tensor.dtype != torch.bfloat16 for tensor in (x, gate_up, down)):
        return "grouped_mm's kernel is for bfloat16"
    if gate_up.stride(1) != gate_up.shape[2] * gate_up.stride(2):
        return "an expert's gate and up are not adjacent in memory"
    for tensor in (x, gate_up, down):
        strides = [stride * tensor.element_size() for stride in tensor.stride()[:-1]]
        if tensor.stride(-1) != 1 or any(stride % GROUPED_ALIGNMENT for stride in strides):
            return f"grouped_mm needs strides of {GROUPED_ALIGNMENT} bytes and a contiguous last dimension"
    return None


def grouped_experts(call: MoeExperts) -> torch.Tensor:
    """Grouped products of sorted rows, then each row's results gathered and summed: deterministic, no host sync."""
    x, ids, experts = call.x, call.ids, call.experts
    k = ids.shape[1]
    order = ids.flatten().sort(stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=x.device)
    counts = torch.zeros(experts.count, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, ids.flatten().long(), torch.ones_like(ids.flatten(), dtype=torch.int32))
    ends = counts.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x[order // k], experts.gate_up.flatten(1, 2).transpose(1, 2), offs=ends).chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, experts.down.transpose(1, 2), offs=ends)
    return torch.einsum("nkd,nk->nd", y[place].view(-1, k, y.shape[1]).float(), call.weights.float()).to(x.dtype)


for _device in ("cpu", "cuda"):
    register("linear", "torch", linear, device=_device)
    register("swiglu", "torch", swiglu, device=_device)
register("moe_experts", "torch", grouped_experts, device="cuda", supports=_grouped_supports)
register("mla_decompressed", "torch", flash_attention, device="cuda", supports=_flash_supports)
