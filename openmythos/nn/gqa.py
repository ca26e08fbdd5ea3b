"""Grouped-query attention (Ainslie et al., arXiv 2305.13245) on torch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from openmythos import reference
from openmythos.cache import Layout, Rows, open_rows
from openmythos.config import MythosConfig
from openmythos.nn import pieces
from openmythos.nn.fusion import children_are_unmodified, fusable
from openmythos.nn.mask import CausalMask, Mask
from openmythos.nn.rope import real_table
from openmythos.ops import repeated
from openmythos.ops.core import direct


class _Pieces(NamedTuple):
    dtype: torch.dtype | None
    wq: pieces.Function
    wk: pieces.Function
    wv: pieces.Function
    wo: pieces.Function
    rope_queries: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rope_keys: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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

    @property
    def layout(self) -> Layout:
        """What the cache stores of a token."""
        width = self.n_kv_heads * self.head_dim
        return Layout(("k", "v"), (width, width), (self.n_kv_heads, self.n_kv_heads), shared=False)

    def adopt(self, entry: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The two cached parts of an entry that another implementation wrote."""
        return entry["k"], entry["v"]

    def real_table(self, freqs_cis: torch.Tensor, new: int) -> torch.Tensor:
        """The rotations of `new` tokens as real numbers, (new, head_dim/2, 2)."""
        return real_table(freqs_cis, new, self.head_dim)

    def pieces(self, trust: pieces.Trust = pieces.UNCHECKED) -> _Pieces:
        """The pieces that one or more calls of `run` use."""
        projections = (pieces.linear(part, trust) for part in (self.wq, self.wk, self.wv, self.wo))
        return _Pieces(
            pieces.weight_dtype(self.wq), *projections, repeated.rope(trust.series), repeated.rope(trust.series)
        )

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
        cos_sin = self.real_table(freqs_cis, x.shape[1])
        rows = open_rows(kv_cache, (cache_key,), x.shape[1], self.layout, (self.adopt,))
        trust = pieces.Trust(children_are_unmodified(self), direct(x))
        out = self.run(self.pieces(trust), x, cos_sin, mask, rows, 0)
        if rows is not None:
            rows.commit()
        return out

    def run(
        self, parts: _Pieces, x: torch.Tensor, cos_sin: torch.Tensor, mask: Mask, rows: Rows | None, index: int
    ) -> torch.Tensor:
        """`forward` with its pieces looked up, and slot `index` of the cache rows.

        x (B, T, dim) or (B * T, dim), cos_sin real (T, head_dim/2, 2) -> the shape of x.
        """
        x, new = pieces.cast(x, parts.dtype), cos_sin.shape[0]
        q = parts.rope_queries(parts.wq(x).reshape(-1, new, self.n_heads, self.head_dim), cos_sin)
        k = parts.rope_keys(parts.wk(x).reshape(-1, new, self.n_kv_heads, self.head_dim), cos_sin)
        v = parts.wv(x).reshape(-1, new, self.n_kv_heads, self.head_dim)
        if rows is not None:
            layout = self.layout
            rows.open(layout, k.shape[0], k.dtype, k.device)
            k, v = rows.append(index, (k, v))
            k, v = layout.unfold(k, 0), layout.unfold(v, 1)
        attended = self._attend(q, k.to(q.dtype), v.to(q.dtype), mask)
        return parts.wo(attended.reshape(*x.shape[:-1], self.n_heads * self.head_dim))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask) -> torch.Tensor:
        dropout = self.dropout_p if self.training else 0.0
        new, total = q.shape[1], k.shape[1]
        causal = isinstance(mask, CausalMask)
        if dropout > 0:
            k, v = (part.repeat_interleave(self.groups, dim=2) for part in (k, v))
            mask = mask.tensor(total) if causal else mask
            return reference.attention(q, k, v, scale=self.head_dim**-0.5, mask=mask, dropout=dropout)
        # a comparison of traced sizes only becomes a bool in a branch
        square = True if causal and new == total else False  # noqa: SIM210
        if causal:
            mask = None if square or new == 1 else mask.tensor(total)
        if mask is not None:
            mask = mask.to(q.dtype)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=square, enable_gqa=self.groups > 1)
        return out.transpose(1, 2)
