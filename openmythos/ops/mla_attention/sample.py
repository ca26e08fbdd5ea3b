"""Calls of latent attention by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos.ops.mla_attention import MlaAttention, MlaAttentionBackward


class Heads(NamedTuple):
    """The number of heads H, and the widths dc, dr, dn and dv."""

    heads: int
    latent: int
    rope: int
    nope: int
    value: int

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return (self.nope + self.rope) ** -0.5


def mla_attention(batch: int, new: int, keys: int, heads: Heads, dtype: torch.dtype, device: str) -> MlaAttention:
    """`new` causal queries over `keys` keys of each of `batch` sequences, a call of either form."""
    shapes = {
        "q_nope": (batch, new, heads.heads, heads.nope),
        "q_rope": (batch, new, heads.heads, heads.rope),
        "latent": (batch, keys, heads.latent),
        "k_rope": (batch, keys, heads.rope),
        "w_uk": (heads.heads, heads.nope, heads.latent),
        "w_uv": (heads.heads, heads.value, heads.latent),
    }
    tensors = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    return MlaAttention(**tensors, scale=heads.scale, causal=True)


def mla_attention_backward(
    batch: int, new: int, keys: int, heads: Heads, dtype: torch.dtype, device: str
) -> MlaAttentionBackward:
    """The backward of `mla_attention`."""
    forward = mla_attention(batch, new, keys, heads, dtype, device)._asdict()
    fields = {name: value for name, value in forward.items() if name in MlaAttentionBackward._fields}
    out = torch.zeros(batch, new, heads.heads, heads.value, dtype=dtype, device=device)
    lse = torch.zeros(batch, heads.heads, new, device=device)
    return MlaAttentionBackward(**fields, grad=torch.zeros_like(out), out=out, lse=lse)
