"""Multi-head latent attention over a shared latent (DeepSeek-V2, arXiv 2405.04434), absorbed and decompressed."""

from __future__ import annotations

import torch

from openmythos.ops.precision import wide


def _visible(
    batch: int, new: int, total: int, causal: bool, seq_lens: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """(B, 1, T, S) bool: keys below the row's length and, if causal, not after the query (bottom-right aligned)."""
    length = torch.full((batch,), total, device=device) if seq_lens is None else seq_lens.to(device)
    key = torch.arange(total, device=device)
    limit = length[:, None].expand(batch, new)
    if causal:
        limit = length[:, None] - new + torch.arange(new, device=device)[None] + 1
    return (key < limit[..., None])[:, None]


def gather_pages(pool: torch.Tensor, block_table: torch.Tensor) -> torch.Tensor:
    """(pages, page, d) and block_table (B, m) -> (B, m * page, d); entries below zero read page 0."""
    return pool[block_table.clamp(min=0).long()].flatten(1, 2)


def _keys_in_order(
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    new: int,
    batch: int,
    causal: bool,
    seq_lens: torch.Tensor | None,
    block_table: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """latent (B, S, dc) and k_rope (B, S, dr) of contiguous sequences, zero where no query sees them, and the mask."""
    if block_table is not None:
        latent, k_rope = gather_pages(latent, block_table), gather_pages(k_rope, block_table)
    visible = _visible(batch, new, latent.shape[1], causal, seq_lens, latent.device)
    used = visible.any(2)[:, 0, :, None]
    return latent.masked_fill(~used, 0), k_rope.masked_fill(~used, 0), visible


def _attention_weights(
    scores: torch.Tensor, q_rope: torch.Tensor, k_rope: torch.Tensor, visible: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax of the scores without their rope part, (B, H, T, S) in k_rope's dtype, and its lse (B, H, T)."""
    compute = wide(scores.dtype)
    scores = scores.to(compute) + torch.matmul(q_rope.transpose(1, 2), k_rope.transpose(1, 2)[:, None]).to(compute)
    scores = (scores * scale).masked_fill(~visible, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0)[..., None]).to(k_rope.dtype), lse


def mla_absorbed(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    scale: float,
    causal: bool,
    seq_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(((q_nope w_uk) . latent + q_rope . k_rope) * scale) latent, times w_uv: keys are never rebuilt.

    q_nope (B, T, H, dn), q_rope (B, T, H, dr), latent (B, S, dc), k_rope (B, S, dr), w_uk (H, dn, dc),
    w_uv (H, dv, dc), seq_lens (B) -> out (B, T, H, dv), lse (B, H, T) in float32 or wider. With a
    block_table, latent and k_rope are pools (pages, page, d). A query that sees no key gives 0 and lse -inf.
    """
    batch, new = q_nope.shape[:2]
    latent, k_rope, visible = _keys_in_order(latent, k_rope, new, batch, causal, seq_lens, block_table)
    query = torch.einsum("bthn,hnc->bhtc", q_nope, w_uk)
    scores = torch.matmul(query, latent.transpose(1, 2)[:, None])
    weights, lse = _attention_weights(scores, q_rope, k_rope, visible, scale)
    out = torch.einsum("bhtc,hvc->bthv", torch.matmul(weights, latent[:, None]), w_uv)
    return out.contiguous(), lse


def mla_decompressed(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    scale: float,
    causal: bool,
    seq_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax((q_nope . (w_uk latent) + q_rope . k_rope) * scale) (w_uv latent): keys and values are rebuilt.

    Arguments and results as `mla_absorbed`.
    """
    batch, new = q_nope.shape[:2]
    latent, k_rope, visible = _keys_in_order(latent, k_rope, new, batch, causal, seq_lens, block_table)
    keys = torch.einsum("bsc,hnc->bhns", latent, w_uk)
    scores = torch.matmul(q_nope.transpose(1, 2), keys)
    weights, lse = _attention_weights(scores, q_rope, k_rope, visible, scale)
    values = torch.einsum("bsc,hvc->bhsv", latent, w_uv)
    return torch.matmul(weights, values).transpose(1, 2).contiguous(), lse


def mla_attention_backward(
    grad: torch.Tensor,
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    causal: bool,
    seq_lens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Gradients with respect to the six tensors, K and V decompressed again, probabilities rebuilt from lse."""
    batch, new = q_nope.shape[:2]
    dtype, compute = latent.dtype, wide(latent.dtype)
    latent, k_rope, visible = _keys_in_order(latent, k_rope, new, batch, causal, seq_lens)
    keys = torch.einsum("bsc,hnc->bhsn", latent, w_uk)
    values = torch.einsum("bsc,hvc->bhsv", latent, w_uv)
    qn, qr = q_nope.transpose(1, 2), q_rope.transpose(1, 2)
    scores = torch.matmul(qn, keys.mT).to(compute) + torch.matmul(qr, k_rope.mT[:, None]).to(compute)
    scores = (scores * scale).masked_fill(~visible, float("-inf"))
    probs = torch.exp(scores - lse.to(compute).masked_fill(lse == float("-inf"), 0)[..., None])
    outer = grad.transpose(1, 2).to(dtype)
    grad_values = torch.matmul(probs.to(dtype).mT, outer)
    delta = (grad.to(compute) * out.to(compute)).sum(-1).transpose(1, 2)[..., None]
    inner = (probs * (torch.matmul(outer, values.mT).to(compute) - delta) * scale).to(dtype)
    grad_keys = torch.matmul(inner.mT, qn)
    grad_latent = torch.einsum("bhsn,hnc->bsc", grad_keys, w_uk) + torch.einsum("bhsv,hvc->bsc", grad_values, w_uv)
    return (
        torch.matmul(inner, keys).transpose(1, 2).contiguous(),
        torch.matmul(inner, k_rope[:, None]).transpose(1, 2).contiguous(),
        grad_latent,
        torch.matmul(inner.mT, qr).sum(1),
        torch.einsum("bhsn,bsc->hnc", grad_keys, latent),
        torch.einsum("bhsv,bsc->hvc", grad_values, latent),
    )
