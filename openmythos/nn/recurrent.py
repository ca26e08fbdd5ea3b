"""The recurrent block: one transformer block looped with input injection and adaptive halting."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import nn

from openmythos import ops
from openmythos.cache import Rows, layer_keys, open_rows
from openmythos.config import MythosConfig
from openmythos.nn import pieces
from openmythos.nn.block import TransformerBlock
from openmythos.nn.fusion import children_are_unmodified, fusable, is_exactly, is_unmodified
from openmythos.nn.loop_state import LoopState
from openmythos.nn.mask import Mask, as_tensor
from openmythos.nn.moe import MoEFFN
from openmythos.nn.norm import RMSNorm
from openmythos.nn.observe import Observation
from openmythos.ops.core import direct
from openmythos.ops.loop_step import LoopParams
from openmythos.ops.loop_step.reference import loop_embedding
from openmythos.ops.precision import wide

# the block as a function of its input and the loop
Block = Callable[[torch.Tensor, int], torch.Tensor]
# exp(-exp(x)) is below 1 in float32 down to x = -15 and above 0 up to x = 4.4
_LOG_RANGE = (-15.0, 4.4)


def loop_index_embedding(h: torch.Tensor, loop_t: int, loop_dim: int, theta: float = 10000.0) -> torch.Tensor:
    """h with [sin | cos] of the loop index added to its first `loop_dim` channels. (..., dim) -> (..., dim)."""
    embedding = loop_embedding(loop_t, loop_dim, h.device, theta)
    return torch.cat((h[..., :loop_dim] + embedding, h[..., loop_dim:]), dim=-1).to(h.dtype)


@fusable
class LoRAAdapter(nn.Module):
    """Low-rank delta with one scale per loop: (down(x) * scale[min(t, max_loops - 1)]) @ B (arXiv 2410.20672)."""

    def __init__(self, dim: int, rank: int, max_loops: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.B = nn.Parameter(torch.randn(rank, dim) * 0.02)
        self.scale = nn.Embedding(max_loops, rank)

    def forward(self, x: torch.Tensor, loop_t: int) -> torch.Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        x = pieces.to_weight_dtype(x, self.down)
        row = min(loop_t, self.scale.num_embeddings - 1)
        own = is_unmodified(self.scale)
        scale = self.scale.weight[row] if own else self.scale(torch.tensor(row, device=x.device))
        return (pieces.linear(self.down)(x) * scale) @ self.B

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Accept a table for another number of loops: extra rows are dropped, missing ones repeat the last."""
        key, rows = f"{prefix}scale.weight", self.scale.num_embeddings
        table = state_dict.get(key)
        if table is not None and table.dim() == 2 and 0 < table.shape[0] != rows:
            index = torch.arange(rows, device=table.device).clamp(max=table.shape[0] - 1)
            state_dict[key] = table[index]
        super()._load_from_state_dict(state_dict, prefix, *args)


@fusable
class LTIInjection(nn.Module):
    """h' = A h + B e + transformer_out with a diagonal A strictly inside (0, 1) (Parcae, arXiv 2604.12946)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_A = nn.Parameter(torch.zeros(dim))
        self.log_dt = nn.Parameter(torch.zeros(1))
        self.B = nn.Parameter(torch.ones(dim) * 0.1)

    def get_A(self) -> torch.Tensor:
        """exp(-exp(log_dt + log_A)), (dim) in float32 or wider, strictly between 0 and 1 even after rounding."""
        total = self.log_dt.to(wide(self.log_dt.dtype)) + self.log_A.to(wide(self.log_A.dtype))
        return torch.exp(-torch.exp(total.clamp(*_LOG_RANGE)))

    def forward(self, h: torch.Tensor, e: torch.Tensor, transformer_out: torch.Tensor) -> torch.Tensor:
        """All (B, T, dim) -> (B, T, dim) in h's dtype, or transformer_out's where that is wider."""
        out = self.get_A() * h + self.B * e + transformer_out
        return out.to(torch.promote_types(h.dtype, transformer_out.dtype))


@fusable
class ACTHalting(nn.Module):
    """Halting probability sigmoid(halt(h)) of each position (Graves, arXiv 1603.08983). (B, T, dim) -> (B, T)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.halt = nn.Linear(dim, 1)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.halt(pieces.to_weight_dtype(h, self.halt))).squeeze(-1)


@fusable
class RecurrentBlock(nn.Module):
    """Loops one block: each step injects e, adds the loop's LoRA delta and accumulates the halting output.

    The step between two runs of the block is one fused op; if lora, injection, act or norm is modified, all four are
    called as modules. `openmythos.observe` returns the number of loops that ran.
    """

    observation: Observation | None = None

    def __init__(self, cfg: MythosConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.block = TransformerBlock(cfg, use_moe=True)
        self.injection = LTIInjection(cfg.dim)
        self.act = ACTHalting(cfg.dim)
        self.lora = LoRAAdapter(cfg.dim, cfg.lora_rank, cfg.max_loop_iters)
        self.norm = RMSNorm(cfg.dim)
        self.loop_dim = cfg.loop_dim

    def loops(self, n_loops: int | None) -> int:
        """The number of loops to run: n_loops, or the config's max_loop_iters for None.

        Raises:
            ValueError: when n_loops is not a positive int.
        """
        if n_loops is None:
            return self.cfg.max_loop_iters
        if not isinstance(n_loops, int) or isinstance(n_loops, bool) or n_loops < 1:
            raise ValueError(f"n_loops={n_loops!r}: must be an int of at least 1, or None for max_loop_iters")
        return n_loops

    def forward(
        self,
        h: torch.Tensor,
        e: torch.Tensor,
        freqs_cis: torch.Tensor,
        mask: Mask = None,
        n_loops: int | None = None,
        kv_cache: MutableMapping | None = None,
    ) -> torch.Tensor:
        """The ACT-weighted sum of the states h after each loop.

        h and e (B, T, dim) -> (B, T, dim). Without a cache the loop ends when every position has halted;
        with one all loops run, so that later tokens find their keys (`recurrent_loop_{t}`).
        """
        loops = self.loops(n_loops)
        if self.is_fusable() and children_are_unmodified(self):
            attn, new = self.block.attn, h.shape[1]
            rows = open_rows(kv_cache, layer_keys(0, loops, 0), new, attn.layout, (attn.adopt,) * loops)
            cos_sin, width = attn.real_table(freqs_cis, new), h.shape[-1]
            out = self.run(h.reshape(-1, width), e.reshape(-1, width), cos_sin, mask, loops, rows, 0)
            if rows is not None:
                rows.commit()
            return out.view(h.shape)
        if not is_exactly(self.block, TransformerBlock):
            mask = as_tensor(mask)
        keys = layer_keys(0, loops, 0)

        def call(x: torch.Tensor, t: int) -> torch.Tensor:
            return self.block(x, freqs_cis, mask, kv_cache, keys[t])

        return self._loop(h, e, loops, lambda: call, kv_cache is not None)

    def is_fusable(self) -> bool:
        """Whether the block is of this library's classes; `run` needs that."""
        return isinstance(self.block, TransformerBlock) and self.block.is_fusable()

    def run(
        self,
        h: torch.Tensor,
        e: torch.Tensor,
        cos_sin: torch.Tensor,
        mask: Mask,
        loops: int,
        rows: Rows | None,
        first: int,
    ) -> torch.Tensor:
        """`forward` of an unmodified block, loop t in slot `first` + t of the cache rows.

        h and e (B * T, dim), cos_sin real (T, dr/2, 2) -> (B * T, dim). The block's weights are looked up once, and
        under autocast the stacked experts are cast once.
        """

        def block() -> Block:
            function = self.block.function(pieces.Trust(unmodified=True, device=direct(h)), cos_sin, mask, rows)
            return lambda x, t: function(x, first + t)

        return self._loop(h, e, loops, block, rows is not None)

    def _loop(
        self, h: torch.Tensor, e: torch.Tensor, loops: int, block: Callable[[], Block], cached: bool
    ) -> torch.Tensor:
        """Run block() in every loop; without a cache until every position has halted."""
        fused = all(is_unmodified(part) for part in (self.lora, self.injection, self.act, self.norm))
        fused = fused and self.lora.down.bias is None and self.act.halt.bias is not None
        run = self._loop_fused if fused else self._loop_modules
        ffn = self.block.ffn if isinstance(self.block, TransformerBlock) else None
        if not isinstance(ffn, MoEFFN):
            return run(h, e, loops, block(), cached)
        ffn.hold_cast()
        try:
            return run(h, e, loops, block(), cached)
        finally:
            ffn.drop_cast()

    def _params(self) -> LoopParams:
        state = wide(self.lora.B.dtype)
        weights = (self.injection.B, self.lora.down.weight, self.lora.scale.weight, self.lora.B)
        heads = (self.act.halt.weight[0], self.act.halt.bias, self.norm.weight)
        A = self.injection.get_A().expand(self.injection.B.shape)
        return LoopParams(*(part.to(state).contiguous() for part in (A, *weights, *heads)))

    def _ends(self, t: int, loops: int, cum_p: torch.Tensor, cached: bool) -> bool:
        """Whether loop t is the last one; then the number of loops is recorded for `observe`."""
        ends = t + 1 == loops or (not cached and self._all_halted(cum_p))
        if ends and self.observation is not None:
            self.observation.loops.append(t + 1)
        return ends

    def _all_halted(self, cum_p: torch.Tensor) -> bool:
        return not torch.compiler.is_compiling() and bool((cum_p >= self.cfg.act_threshold).all())

    def _loop_fused(self, h: torch.Tensor, e: torch.Tensor, loops: int, block: Block, cached: bool) -> torch.Tensor:
        eps = self.norm.eps
        first = loop_index_embedding(h, 0, self.loop_dim)
        x, _ = ops.rms_norm_add(first, e, self.norm.weight, eps, dtype=e.dtype)
        state = LoopState(h, e, self._params(), threshold=self.cfg.act_threshold, eps=eps, loop_dim=self.loop_dim)
        for t in range(loops):
            block_out = block(x, t)
            if t + 1 == loops:
                state.finish(block_out, t)
            else:
                x = state.advance(block_out, t)
            if self._ends(t, loops, state.cum_p, cached):
                break
        return state.output()

    def _loop_modules(self, h: torch.Tensor, e: torch.Tensor, loops: int, block: Block, cached: bool) -> torch.Tensor:
        threshold = self.cfg.act_threshold
        cum_p = torch.zeros(h.shape[:-1], dtype=wide(h.dtype), device=h.device)
        h_out = torch.zeros(h.shape, dtype=cum_p.dtype, device=h.device)
        for t in range(loops):
            x = self.norm(loop_index_embedding(h, t, self.loop_dim) + e)
            block_out = block(x, t)
            h = self.injection(h, e, block_out + self.lora(block_out, t)).to(h.dtype)
            p = self.act(h).to(cum_p.dtype)
            running = cum_p < threshold
            weight = torch.where(cum_p + p >= threshold, (1 - cum_p).clamp(min=0), p) * running
            h_out = h_out + weight.unsqueeze(-1) * h
            cum_p = cum_p + p * running
            if self._ends(t, loops, cum_p, cached):
                break
        return h_out.to(h.dtype)
