"""The pre-norm transformer block of prelude, loop and coda."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import nn

from openmythos import ops
from openmythos.config import MythosConfig
from openmythos.nn.experts import Expert
from openmythos.nn.gqa import GQAttention
from openmythos.nn.mask import CausalMask, Mask
from openmythos.nn.mla import MLAttention
from openmythos.nn.moe import MoEFFN
from openmythos.nn.norm import RMSNorm
from openmythos.nn.pristine import fusable, pristine, unchanged


def _norm_dtype(norm: RMSNorm, x: torch.Tensor) -> torch.dtype | None:
    """A 16-bit norm feeds 16-bit projections even where the residual stream is wider."""
    dtype = norm.weight.dtype
    return dtype if dtype.itemsize < x.dtype.itemsize else None


@fusable
class TransformerBlock(nn.Module):
    """x + attn(attn_norm(x)), then + ffn(ffn_norm(.)); ffn is a MoEFFN with use_moe, else a dense Expert.

    The residual stream keeps the dtype of x: a float32 stream through 16-bit weights stays float32.
    """

    def __init__(self, cfg: MythosConfig, use_moe: bool = False) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(cfg.dim)
        self.ffn_norm = RMSNorm(cfg.dim)
        self.attn = MLAttention(cfg) if cfg.attn_type == "mla" else GQAttention(cfg)
        self.ffn = MoEFFN(cfg) if use_moe else Expert(cfg.dim, cfg.ffn_dim)
        self.resid_drop = nn.Dropout(cfg.dropout)

    def forward(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask = None,
        kv_cache: MutableMapping | None = None,
        cache_key: str = "default",
    ) -> torch.Tensor:
        """x (B, T, dim) -> (B, T, dim). Arguments as the attention's."""
        if pristine(self.attn_norm):
            normed = ops.rms_norm(x, self.attn_norm.weight, self.attn_norm.eps, dtype=_norm_dtype(self.attn_norm, x))
        else:
            normed = self.attn_norm(x)
        if isinstance(mask, CausalMask) and not unchanged(self.attn, GQAttention, MLAttention):
            mask = mask.tensor()
        attended = self.resid_drop(self.attn(normed, freqs_cis, mask, kv_cache, cache_key))
        if pristine(self.ffn_norm):
            normed, x = ops.rms_norm_add(
                x, attended, self.ffn_norm.weight, self.ffn_norm.eps, dtype=_norm_dtype(self.ffn_norm, x)
            )
        else:
            x = x + attended
            normed = self.ffn_norm(x)
        return x + self.resid_drop(self.ffn(normed))
