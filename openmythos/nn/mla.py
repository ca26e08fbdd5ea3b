"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on the op mla_attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import NamedTuple

import torch
from torch import nn

from openmythos import reference
from openmythos.cache import NORMALISED, Layout, Rows, open_rows
from openmythos.config import MythosConfig
from openmythos.nn import pieces
from openmythos.nn.fusion import children_are_unmodified, fusable
from openmythos.nn.mask import CausalMask, Mask
from openmythos.nn.norm import RMSNorm
from openmythos.nn.rope import real_table
from openmythos.ops import repeated
from openmythos.ops.core import direct


class _Pieces(NamedTuple):
    """`append` and `attend` are None where a modified child has to be called instead."""

    dtype: torch.dtype | None
    layout: Layout
    q_down: pieces.Function
    q_norm: pieces.Function
    q_up_nope: pieces.Function
    q_up_rope: pieces.Function
    kv_down: pieces.Function
    kv_norm: pieces.Function
    wo: pieces.Function
    rope_queries: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rope_keys: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    append: Callable[..., None] | None
    append_dtype: torch.dtype | None
    attend: Callable[..., torch.Tensor] | None
    dropout: float


@fusable
class MLAttention(nn.Module):
    """Attention whose keys and values are linear maps of one small latent per token.

    The cache keeps the normalised latent and one rotated rope key for all heads; an entry is
    {"c_kv": (B, S, kv_lora_rank), "k_rope": (B, S, n_heads, qk_rope_head_dim)}, the second expanded
    without a copy. An entry that another implementation wrote (latent before its norm) is recognised.
    """

    def __init__(self, cfg: MythosConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.kv_lora_rank = cfg.kv_lora_rank
        self.qk_rope_dim = cfg.qk_rope_head_dim
        self.qk_nope_dim = cfg.qk_nope_head_dim
        self.v_dim = cfg.v_head_dim
        self.q_head_dim = cfg.qk_nope_head_dim + cfg.qk_rope_head_dim
        self.q_down = nn.Linear(cfg.dim, cfg.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(cfg.q_lora_rank)
        self.q_up_nope = nn.Linear(cfg.q_lora_rank, cfg.n_heads * cfg.qk_nope_head_dim, bias=False)
        self.q_up_rope = nn.Linear(cfg.q_lora_rank, cfg.n_heads * cfg.qk_rope_head_dim, bias=False)
        self.kv_down = nn.Linear(cfg.dim, cfg.kv_lora_rank + cfg.qk_rope_head_dim, bias=False)
        self.kv_norm = RMSNorm(cfg.kv_lora_rank)
        self.kv_up = nn.Linear(cfg.kv_lora_rank, cfg.n_heads * (cfg.qk_nope_head_dim + cfg.v_head_dim), bias=False)
        self.wo = nn.Linear(cfg.n_heads * cfg.v_head_dim, cfg.dim, bias=False)
        self.attn_drop = nn.Dropout(cfg.dropout)

    @property
    def layout(self) -> Layout:
        """What the cache stores of a token."""
        return Layout(("c_kv", "k_rope"), (self.kv_lora_rank, self.qk_rope_dim), (0, self.n_heads), shared=True)

    def adopt(self, entry: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The two cached parts of an entry that another implementation wrote."""
        latent = entry["c_kv"] if NORMALISED in entry else self.kv_norm(entry["c_kv"])
        return latent, entry["k_rope"][:, :, 0]

    def real_table(self, freqs_cis: torch.Tensor, new: int) -> torch.Tensor:
        """The rotations of `new` tokens as real numbers, (new, qk_rope_dim/2, 2)."""
        return real_table(freqs_cis, new, self.qk_rope_dim)

    def pieces(self, trust: pieces.Trust = pieces.UNCHECKED) -> _Pieces:
        """The pieces that one or more calls of `run` use."""
        norm, kv_up, drop = self.kv_norm, self.kv_up, self.attn_drop
        append = append_dtype = attend = None
        if trust.device is not None and isinstance(norm, RMSNorm) and trust.allows(norm):
            append = repeated.rope_append_(norm.weight, norm.eps, trust.series)
            append_dtype = norm.weight.dtype
        if kv_up.bias is None and trust.allows(kv_up) and trust.allows(drop):
            weight = kv_up.weight.unflatten(0, (self.n_heads, self.qk_nope_dim + self.v_dim))
            w_uk, w_uv = weight[:, : self.qk_nope_dim], weight[:, self.qk_nope_dim :]
            attend = repeated.mla_attention(w_uk, w_uv, self.q_head_dim**-0.5, trust.series)
        return _Pieces(
            dtype=pieces.weight_dtype(self.q_down),
            layout=self.layout,
            q_down=pieces.linear(self.q_down, trust),
            q_norm=pieces.norm(self.q_norm, trust),
            q_up_nope=pieces.linear(self.q_up_nope, trust),
            q_up_rope=pieces.linear(self.q_up_rope, trust),
            kv_down=pieces.linear(self.kv_down, trust),
            kv_norm=pieces.norm(norm, trust),
            wo=pieces.linear(self.wo, trust),
            rope_queries=repeated.rope(trust.series),
            rope_keys=repeated.rope(trust.series),
            append=append,
            append_dtype=append_dtype,
            attend=attend,
            dropout=drop.p if drop.training else 0.0,
        )

    def forward(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask = None,
        kv_cache: MutableMapping | None = None,
        cache_key: str = "default",
    ) -> torch.Tensor:
        """x (B, T, dim), freqs_cis complex (at least T, rope_dim/2), mask additive (B|1, H|1, T, S) -> (B, T, dim).

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

        x (B, T, dim) or (B * T, dim), cos_sin real (T, rope_dim/2, 2) -> the shape of x.
        """
        x, new = pieces.cast(x, parts.dtype), cos_sin.shape[0]
        query = parts.q_norm(parts.q_down(x))
        q_nope = parts.q_up_nope(query).reshape(-1, new, self.n_heads, self.qk_nope_dim)
        q_rope = parts.q_up_rope(query).reshape(-1, new, self.n_heads, self.qk_rope_dim)
        q_rope = parts.rope_queries(q_rope, cos_sin)
        down = parts.kv_down(x).reshape(-1, new, self.kv_lora_rank + self.qk_rope_dim)
        if rows is not None and parts.append is not None:
            rows.open(parts.layout, down.shape[0], torch.promote_types(down.dtype, parts.append_dtype), down.device)
            parts.append(down, cos_sin if rows.table is None else rows.table, rows.new[index], rows.position)
            latent, k_rope = rows.first[index], rows.second[index]
        else:
            latent = parts.kv_norm(down[..., : self.kv_lora_rank])
            k_rope = parts.rope_keys(down[..., None, self.kv_lora_rank :], cos_sin)[:, :, 0]
            if rows is not None:
                rows.open(parts.layout, latent.shape[0], latent.dtype, latent.device)
                latent, k_rope = rows.append(index, (latent, k_rope))
        seq_lens = None if rows is None else rows.seq_lens
        attended = self._attend(parts, q_nope, q_rope, latent, k_rope, mask, seq_lens)
        return parts.wo(attended.reshape(*x.shape[:-1], self.n_heads * self.v_dim))

    def _attend(
        self,
        parts: _Pieces,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        mask: Mask,
        seq_lens: torch.Tensor | None,
    ) -> torch.Tensor:
        causal = isinstance(mask, CausalMask)
        if (mask is None or causal) and not parts.dropout and parts.attend is not None:
            if latent.dtype != q_nope.dtype:
                latent, k_rope = latent.to(q_nope.dtype), k_rope.to(q_nope.dtype)
            return parts.attend(q_nope, q_rope, latent, k_rope, causal, seq_lens)
        both = self.kv_up(latent).unflatten(-1, (self.n_heads, self.qk_nope_dim + self.v_dim))
        keys = torch.cat(
            (both[..., : self.qk_nope_dim], k_rope.to(both.dtype)[:, :, None].expand(-1, -1, self.n_heads, -1)), dim=-1
        )
        queries = torch.cat((q_nope, q_rope), dim=-1).to(keys.dtype)
        values, scale = both[..., self.qk_nope_dim :], self.q_head_dim**-0.5
        mask = mask.tensor(keys.shape[1]) if causal else mask
        return reference.attention(queries, keys, values, scale=scale, mask=mask, dropout=self.attn_drop)
