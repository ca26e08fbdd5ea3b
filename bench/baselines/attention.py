"""Other implementations of latent attention: rebuilt keys and values with SDPA, FlexAttention, plain matmuls."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.baselines.compiled import compiled

Inputs = tuple[torch.Tensor, ...]


def _heads_first(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> Inputs:
    """Queries, keys and values of every head, (B, H, T or S, d), as upstream rebuilds them."""
    heads = q_nope.shape[2]
    keys = torch.einsum("bsc,hnc->bhsn", latent, w_uk)
    keys = torch.cat((keys, k_rope[:, None].expand(-1, heads, -1, -1)), dim=-1)
    values = torch.einsum("bsc,hvc->bhsv", latent, w_uv)
    return torch.cat((q_nope, q_rope), dim=-1).transpose(1, 2), keys, values


def _is_causal(queries: torch.Tensor, keys: torch.Tensor) -> bool:
    new, total = queries.shape[2], keys.shape[2]
    if new not in (1, total):
        raise ValueError(f"{new} queries over {total} keys: is_causal aligns the mask at the top left")
    return new > 1


def expanded(scale: float) -> Callable[..., torch.Tensor]:
    """Keys and values rebuilt for every head, then scaled_dot_product_attention: upstream's algorithm, fused."""

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        queries, keys, values = _heads_first(*inputs)
        causal = _is_causal(queries, keys)
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=scale).transpose(1, 2)

    return run


def flex(scale: float, device: torch.device, smoke: bool, *, absorbed: bool) -> Callable[..., torch.Tensor] | str:
    """FlexAttention: absorbed, over the latent as one shared head; else over rebuilt keys and values."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend = compiled(flex_attention, device, smoke)
    if isinstance(attend, str):
        return attend
    masks: dict[int, object] = {}

    def run_absorbed(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> torch.Tensor:
        queries = torch.cat((torch.einsum("bthn,hnc->bhtc", q_nope, w_uk), q_rope.transpose(1, 2)), dim=-1)
        keys = torch.cat((latent, k_rope), dim=-1)[:, None]
        out = attend(queries, keys, latent[:, None].contiguous(), scale=scale, enable_gqa=True)
        return torch.einsum("bhtc,hvc->bthv", out, w_uv)

    def run_expanded(*inputs: torch.Tensor) -> torch.Tensor:
        queries, keys, values = _heads_first(*inputs)
        _is_causal(queries, keys)
        length = keys.shape[2]
        if length not in masks:
            masks[length] = create_block_mask(
                lambda b, h, i, j: i >= j, None, None, length, length, device=device.type
            )
        return attend(queries, keys, values, scale=scale, block_mask=masks[length]).transpose(1, 2)

    return run_absorbed if absorbed else run_expanded


def matmuls(scale: float) -> Callable[..., torch.Tensor]:
    """The absorbed form as four batched matrix products and a softmax, for one new token."""

    def run(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> torch.Tensor:
        if q_nope.shape[1] != 1:
            raise ValueError(f"{q_nope.shape[1]} queries: this baseline takes one")
        folded = torch.einsum("bthn,hnc->bthc", q_nope, w_uk)[:, 0]
        scores = folded @ latent.transpose(1, 2) + q_rope[:, 0] @ k_rope.transpose(1, 2)
        weights = torch.softmax(scores.float() * scale, dim=-1).to(latent.dtype)
        return torch.einsum("bhc,hvc->bhv", weights @ latent, w_uv)[:, None]

    return run
