"""mla_attention through torch's flash attention on GPUs: keys and values decompressed, a copy of the rope key a head.

A library's kernel to compare with, and what serves where Triton is missing. It is called directly and not through
scaled_dot_product_attention, which gives no logsumexp and takes the slow path in silence where it finds no kernel.
"""

from __future__ import annotations

import os

import torch

from openmythos.backends.flat import register_flat

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD = 256


def _device_reason(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"torch's flash attention is called on GPUs only, not on {device.type}"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is None:
        old = properties.major < 8
        return f"sm{properties.major}{properties.minor}: torch's flash attention needs sm80" if old else None
    arch = properties.gcnArchName.split(":")[0]
    if arch.startswith("gfx11") and os.environ.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") != "1":
        return f"{arch}: without TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 torch has no flash attention there"
    return None


def _shape_reason(batch: int, new: int, total: int, dn: int, dr: int, dv: int, causal: bool) -> str | None:
    if 0 in (batch, new, total):
        return "no sequences, queries or keys"
    if causal and new not in (1, total):
        return f"{new} queries for {total} keys: torch's causal mask is aligned at the top left"
    if (dn + dr) % 8 or dn + dr > MAX_HEAD or dv > dn + dr:
        return f"dn + dr = {dn + dr}, dv = {dv}: a key has a multiple of 8 channels up to {MAX_HEAD}, a value no more"
    return None


def _supports(
    q_nope, q_rope, latent, k_rope, w_uk, w_uv, scale, causal, seq_lens=None, block_table=None, form="decompressed"
) -> str | None:
    if form == "absorbed":
        return "the absorbed form: keys of dc + dr channels are wider than torch's flash attention takes"
    if seq_lens is not None or block_table is not None:
        return "ragged lengths and paged caches"
    tensors = (q_nope, q_rope, latent, k_rope, w_uk, w_uv)
    if q_nope.dtype not in DTYPES or any(tensor.dtype != q_nope.dtype for tensor in tensors):
        return "torch's flash attention takes tensors of one 16-bit dtype"
    (batch, new, _, dn), dr, total = q_nope.shape, q_rope.shape[3], latent.shape[1]
    return _shape_reason(batch, new, total, dn, dr, w_uv.shape[1], causal) or _device_reason(q_nope.device)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> tuple[torch.Tensor, ...]:
    """(B, H, T, d) tensors -> out and logsumexp (B, H, T)."""
    if q.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return found[0], found[1]


def attend(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    scale: float,
    causal: bool,
    seq_lens: None = None,
    block_table: None = None,
    form: str = "decompressed",
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, T, H, dv) and lse (B, H, T); values are padded to the keys' width, as the kernel asks."""
    batch, new, heads, dn = q_nope.shape
    total, dv, width = latent.shape[1], w_uv.shape[1], dn + q_rope.shape[3]
    kind = {"dtype": latent.dtype, "device": latent.device}
    keys, values = torch.empty((2, batch, total, heads, width), **kind)
    keys[..., :dn] = torch.einsum("bsc,hnc->bshn", latent, w_uk)
    keys[..., dn:] = k_rope[:, :, None]
    values[..., :dv] = torch.einsum("bsc,hvc->bshv", latent, w_uv)
    values[..., dv:] = 0
    queries = torch.cat((q_nope, q_rope), dim=-1)
    heads_first = [part.transpose(1, 2) for part in (queries, keys, values)]
    out, lse = _flash(*heads_first, causal and new == total, scale)
    return out[..., :dv].transpose(1, 2).contiguous(), lse.contiguous()


register_flat("mla_decompressed", "torch", attend, device="cuda", supports=_supports)
