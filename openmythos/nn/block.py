"""The pre-norm transformer block of prelude, loop and coda."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import NamedTuple

import torch
from torch import nn

from openmythos.cache import Rows, open_rows
from openmythos.config import MythosConfig
from openmythos.nn import pieces
from openmythos.nn.experts import Expert
from openmythos.nn.fusion import children_are_unmodified, fusable, is_exactly
from openmythos.nn.gqa import GQAttention
from openmythos.nn.mask import Mask, as_tensor
from openmythos.nn.mla import MLAttention
from openmythos.nn.moe import MoEFFN
from openmythos.nn.norm import RMSNorm
from openmythos.ops.core import direct


class _Pieces(NamedTuple):
    attn_norm: pieces.Function
    ffn_norm: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    ffn: pieces.Function
    drop: pieces.Function


@fusable
class TransformerBlock(nn.Module):
    """h = x + attn(attn_norm(x)); h + ffn(ffn_norm(h)). ffn is a MoEFFN with use_moe, else a dense Expert.

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
        """x (B, T, dim) -> (B, T, dim). Arguments as in the attention's forward."""
        if self.is_fusable() and children_are_unmodified(self):
            attn, new = self.attn, x.shape[1]
            rows = open_rows(kv_cache, (cache_key,), new, attn.layout, (attn.adopt,))
            trust = pieces.Trust(unmodified=True, device=direct(x))
            run = self.function(trust, attn.real_table(freqs_cis, new), mask, rows)
            out = run(x.reshape(-1, x.shape[-1]), 0).view(x.shape)
            if rows is not None:
                rows.commit()
            return out
        if not is_exactly(self.attn, GQAttention, MLAttention):
            mask = as_tensor(mask)
        parts = self._pieces(pieces.UNCHECKED)
        return self._run(parts, x, lambda normed: self.attn(normed, freqs_cis, mask, kv_cache, cache_key))

    def function(
        self, trust: pieces.Trust, cos_sin: torch.Tensor, mask: Mask, rows: Rows | None
    ) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """This block, which must be unmodified, as a function of x and the index of its slot in `rows`.

        x (B * T, dim), so that no part has to flatten it.
        """
        parts, attn_parts, attend = self._pieces(trust), self.attn.pieces(trust), self.attn.run

        def run(x: torch.Tensor, index: int) -> torch.Tensor:
            return self._run(parts, x, lambda normed: attend(attn_parts, normed, cos_sin, mask, rows, index))

        return run

    def is_fusable(self) -> bool:
        """Whether attention and ffn are of this library's classes; `function` needs that."""
        return isinstance(self.attn, GQAttention | MLAttention)

    def _pieces(self, trust: pieces.Trust) -> _Pieces:
        ffn = self.ffn
        if isinstance(ffn, Expert | MoEFFN) and trust.allows(ffn):
            ffn = ffn.function(trust)
        return _Pieces(
            pieces.stream_norm(self.attn_norm, trust),
            pieces.stream_norm_add(self.ffn_norm, trust),
            ffn,
            pieces.dropout(self.resid_drop, trust),
        )

    @staticmethod
    def _run(parts: _Pieces, x: torch.Tensor, attend: pieces.Function) -> torch.Tensor:
        attended = parts.drop(attend(parts.attn_norm(x)))
        normed, x = parts.ffn_norm(x, attended)
        return x + parts.drop(parts.ffn(normed))
