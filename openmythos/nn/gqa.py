"""Grouped-query attention (Ainslie et al., arXiv 2305.13245) on torch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
import torch.nn.functional as F
from torch import nn

from openmythos import reference
from openmythos.cache import Layout, extend
from openmythos.config import MythosConfig
from openmythos.nn.mask import CausalMask, Mask
from openmythos.nn.pristine import fusable
from openmythos.nn.project import project, to_weight_dtype
from openmythos.nn.rope import apply_rope


@fusable
class GQAttention(nn.Module):
    """Attention with n_kv_heads shared by n_heads queries; the cache keeps rotated keys and values.

    A cache entry is {"k", "v"}, each (B, S, n_kv_heads, head_dim).
    """

    def __init__(self, cfg: MythosConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.n_kv_heads = cfg.n_kv_heads
        self.head_dim = cfg.dim // cfg.n_heads
        self.groups = cfg.n_heads // cfg.n_kv_heads
        self.wq = nn.Linear(cfg.dim, cfg.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(cfg.dim, cfg.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(cfg.dim, cfg.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(cfg.n_heads * self.head_dim, cfg.dim, bias=False)
        self.dropout_p = cfg.dropout

    def _layout(self) -> Layout:
        width = self.n_kv_heads * self.head_dim
        return Layout(("k", "v"), (width, width), (self.n_kv_heads, self.n_kv_heads), shared=False)

    def forward(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask = None,
        kv_cache: MutableMapping | None = None,
        cache_key: str = "default",
    ) -> torch.Tensor:
        """x (B, T, dim), freqs_cis complex (at least T, head_dim/2), mask additive (B|1, H|1, T, S) -> (B, T, dim).

        mask=None attends to every key. `kv_cache[cache_key]` is extended by the T tokens.
        """
        x = to_weight_dtype(x, self.wq)
        q = apply_rope(project(self.wq, x).unflatten(-1, (self.n_heads, self.head_dim)), freqs_cis)
        k = apply_rope(project(self.wk, x).unflatten(-1, (self.n_kv_heads, self.head_dim)), freqs_cis)
        v = project(self.wv, x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if kv_cache is not None:
            layout = self._layout()
            rows = extend(kv_cache, cache_key, layout, (k, v), lambda entry: (entry["k"], entry["v"]))
            k, v = layout.view(rows, 0), layout.view(rows, 1)
        return project(self.wo, self._attend(q, k.to(q.dtype), v.to(q.dtype), mask).flatten(2))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask) -> torch.Tensor:
        dropout = self.dropout_p if self.training else 0.0
        new, total = q.shape[1], k.shape[1]
        causal = isinstance(mask, CausalMask)
        if dropout > 0:
            k, v = (part.repeat_interleave(self.groups, dim=2) for part in (k, v))
            mask = mask.tensor(total) if causal else mask
            return reference.attention(q, k, v, scale=self.head_dim**-0.5, mask=mask, dropout=dropout)
        # a comparison of traced sizes becomes a bool only by branching on it
        square = True if causal and new == total else False  # noqa: SIM210
        if causal:
            mask = None if square or new == 1 else mask.tensor(total)
        if mask is not None:
            mask = mask.to(q.dtype)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=square, enable_gqa=self.groups > 1)
        return out.transpose(1, 2)
