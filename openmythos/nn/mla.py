"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on the op mla_attention."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import nn

from openmythos import ops, reference
from openmythos.cache import NORMALISED, FixedRows, Layout, extend, extend_with
from openmythos.config import MythosConfig
from openmythos.nn.mask import CausalMask, Mask
from openmythos.nn.norm import RMSNorm
from openmythos.nn.pristine import fusable, pristine
from openmythos.nn.project import project, to_weight_dtype
from openmythos.nn.rope import apply_rope
from openmythos.ops.core import direct


@fusable
class MLAttention(nn.Module):
    """Attention whose keys and values are linear maps of one small latent a token.

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

    def _layout(self) -> Layout:
        return Layout(("c_kv", "k_rope"), (self.kv_lora_rank, self.qk_rope_dim), (0, self.n_heads), shared=True)

    def _adopt(self, entry: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        latent = entry["c_kv"] if NORMALISED in entry else self.kv_norm(entry["c_kv"])
        return latent, entry["k_rope"][:, :, 0]

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
        x = to_weight_dtype(x, self.q_down)
        query = self.q_norm(project(self.q_down, x))
        q_nope = project(self.q_up_nope, query).unflatten(-1, (self.n_heads, self.qk_nope_dim))
        q_rope = project(self.q_up_rope, query).unflatten(-1, (self.n_heads, self.qk_rope_dim))
        q_rope = apply_rope(q_rope, freqs_cis)
        down = project(self.kv_down, x)
        if kv_cache is not None and direct(down) and pristine(self.kv_norm):
            rows = self._append(down, freqs_cis, kv_cache, cache_key)
        else:
            latent = self.kv_norm(down[..., : self.kv_lora_rank])
            k_rope = apply_rope(down[..., None, self.kv_lora_rank :], freqs_cis)[:, :, 0]
            rows = (
                None
                if kv_cache is None
                else extend(kv_cache, cache_key, self._layout(), (latent, k_rope), self._adopt)
            )
        if rows is not None:
            latent, k_rope = rows[..., : self.kv_lora_rank], rows[..., self.kv_lora_rank :]
        seq_lens = kv_cache.lengths if isinstance(kv_cache, FixedRows) else None
        return project(self.wo, self._attend(q_nope, q_rope, latent, k_rope, mask, seq_lens).flatten(2))

    def _append(
        self, down: torch.Tensor, freqs_cis: torch.Tensor, kv_cache: MutableMapping | FixedRows, cache_key: str
    ) -> torch.Tensor:
        """Norm, rotate and store the new tokens' rows in one launch; returns all rows, (B, S, width)."""
        norm, new = self.kv_norm, down.shape[:2]
        if isinstance(kv_cache, FixedRows):
            rows = kv_cache.rows(cache_key)
            ops.rope_append_(down, norm.weight, kv_cache.table, rows, kv_cache.position, eps=norm.eps)
            return rows

        def write(fresh: torch.Tensor) -> None:
            ops.rope_append_(down, norm.weight, torch.view_as_real(freqs_cis[: new[1]]), fresh, eps=norm.eps)

        dtype = torch.promote_types(down.dtype, norm.weight.dtype)
        return extend_with(kv_cache, cache_key, self._layout(), new, dtype, down.device, self._adopt, write)

    def _attend(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        mask: Mask,
        seq_lens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        causal = isinstance(mask, CausalMask)
        scale = self.q_head_dim**-0.5
        dropout = self.attn_drop.p if self.attn_drop.training else 0.0
        fused = pristine(self.kv_up) and self.kv_up.bias is None and pristine(self.attn_drop)
        if (mask is None or causal) and not dropout and fused:
            weight = self.kv_up.weight.unflatten(0, (self.n_heads, self.qk_nope_dim + self.v_dim))
            w_uk, w_uv = weight[:, : self.qk_nope_dim], weight[:, self.qk_nope_dim :]
            latent, k_rope = latent.to(q_nope.dtype), k_rope.to(q_nope.dtype)
            options = {"scale": scale, "causal": causal, "seq_lens": seq_lens}
            return ops.mla_attention(q_nope, q_rope, latent, k_rope, w_uk, w_uv, **options)
        both = self.kv_up(latent).unflatten(-1, (self.n_heads, self.qk_nope_dim + self.v_dim))
        keys = torch.cat(
            (both[..., : self.qk_nope_dim], k_rope.to(both.dtype)[:, :, None].expand(-1, -1, self.n_heads, -1)), dim=-1
        )
        queries = torch.cat((q_nope, q_rope), dim=-1).to(keys.dtype)
        values = both[..., self.qk_nope_dim :]
        mask = mask.tensor(keys.shape[1]) if causal else mask
        return reference.attention(queries, keys, values, scale=scale, mask=mask, dropout=self.attn_drop)
