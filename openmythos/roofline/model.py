"""The cost of the whole model by part, each part times the number of its runs."""

from __future__ import annotations

import torch

from openmythos.config import MythosConfig
from openmythos.ops.cost import Cost, total
from openmythos.ops.linear import cost as linear_cost
from openmythos.ops.linear import sample as linear
from openmythos.ops.loop_step import cost as loop_step_cost
from openmythos.ops.loop_step import sample as loop_step
from openmythos.ops.mla_attention import absorbed_wins
from openmythos.ops.mla_attention import cost as mla_cost
from openmythos.ops.mla_attention import sample as mla
from openmythos.ops.moe import cost as moe_cost
from openmythos.ops.moe import sample as moe
from openmythos.ops.rms_norm import cost as rms_norm_cost
from openmythos.ops.rms_norm import sample as rms_norm

# the residual stream, for any dtype of the weights
STREAM = torch.float32
# the counts read shapes and dtypes only
DEVICE = "meta"


def heads_of(cfg: MythosConfig) -> mla.Heads:
    """Sizes of the config's latent attention.

    Raises:
        ValueError: for grouped-query attention.
    """
    if cfg.attn_type != "mla":
        raise ValueError(f"attn_type={cfg.attn_type!r}: only 'mla' can be counted")
    return mla.Heads(cfg.n_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim, cfg.qk_nope_head_dim, cfg.v_head_dim)


def experts_of(cfg: MythosConfig) -> moe.Sizes:
    """Sizes of the config's mixture of experts."""
    return moe.Sizes(cfg.dim, cfg.expert_dim, cfg.n_experts, cfg.n_experts_per_tok, cfg.n_shared_experts)


def attention_parameters(cfg: MythosConfig) -> int:
    """Weights of one attention layer, its two inner norms included."""
    heads = heads_of(cfg)
    per_head = heads.nope + heads.rope
    query = cfg.dim * cfg.q_lora_rank + cfg.q_lora_rank * heads.heads * per_head
    keys = cfg.dim * (heads.latent + heads.rope) + heads.latent * heads.heads * (heads.nope + heads.value)
    norms = cfg.q_lora_rank + heads.latent
    return query + keys + heads.heads * heads.value * cfg.dim + norms


def routed_parameters(cfg: MythosConfig) -> int:
    """Weights of all routed experts."""
    return cfg.n_experts * 3 * cfg.dim * cfg.expert_dim


def parameters(cfg: MythosConfig) -> int:
    """All parameters; the tied embedding counts once."""
    norms = 2 * cfg.dim
    dense = attention_parameters(cfg) + 3 * cfg.dim * cfg.ffn_dim + norms
    shared = cfg.n_shared_experts * cfg.n_experts_per_tok * 3 * cfg.dim * cfg.expert_dim
    block = attention_parameters(cfg) + routed_parameters(cfg) + shared + cfg.dim * cfg.n_experts + norms
    lora = 2 * cfg.lora_rank * cfg.dim + cfg.max_loop_iters * cfg.lora_rank
    # of the loop: log_A, B, log_dt, the halting head and its bias, the input norm
    step = 4 * cfg.dim + 2
    layers = cfg.prelude_layers + cfg.coda_layers
    return cfg.vocab_size * cfg.dim + layers * dense + block + lora + step + cfg.dim


def cache_slots(cfg: MythosConfig, loops: int) -> int:
    """The number of layers in the cache: every loop caches its own rows."""
    return cfg.prelude_layers + loops + cfg.coda_layers


def cache_bytes(cfg: MythosConfig, loops: int, dtype: torch.dtype) -> int:
    """Bytes of cache per token: a latent and a rope key in every slot."""
    heads = heads_of(cfg)
    return cache_slots(cfg, loops) * (heads.latent + heads.rope) * dtype.itemsize


def _linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Cost:
    return linear_cost.linear(linear.linear(rows, inputs, outputs, dtype, DEVICE))


def mla_attention(heads: mla.Heads, batch: int, new: int, keys: int, dtype: torch.dtype) -> Cost:
    """`new` causal queries over `keys` keys per sequence, in the form with fewer FLOPs."""
    call = mla.mla_attention(batch, new, keys, heads, dtype, DEVICE)
    absorbed = absorbed_wins(new, keys, heads.latent, heads.nope, heads.value)
    return mla_cost.mla_absorbed(call) if absorbed else mla_cost.mla_decompressed(call)


def attention(cfg: MythosConfig, batch: int, new: int, keys: int, dtype: torch.dtype) -> Cost:
    """One attention layer with its projections."""
    heads, rows = heads_of(cfg), batch * new
    return total(
        [
            _linear(rows, cfg.dim, cfg.q_lora_rank, dtype),
            _linear(rows, cfg.q_lora_rank, heads.heads * (heads.nope + heads.rope), dtype),
            _linear(rows, cfg.dim, heads.latent + heads.rope, dtype),
            mla_attention(heads, batch, new, keys, dtype),
            _linear(rows, heads.heads * heads.value, cfg.dim, dtype),
        ]
    )


def forward(
    cfg: MythosConfig, batch: int, new: int, past: int, loops: int, dtype: torch.dtype, *, last_token_only: bool = True
) -> dict[str, Cost]:
    """Cost by part of one call with `new` tokens per sequence after `past` cached ones, weights in `dtype`."""
    rows = batch * new
    layers = cfg.prelude_layers + cfg.coda_layers
    attend = attention(cfg, batch, new, past + new, dtype)
    norms = rms_norm_cost.rms_norm(rms_norm.rms_norm(rows, cfg.dim, STREAM, DEVICE))
    norms += rms_norm_cost.rms_norm_add(rms_norm.rms_norm_add(rows, cfg.dim, STREAM, DEVICE))
    dense = linear_cost.swiglu(linear.swiglu(rows, cfg.dim, cfg.ffn_dim, dtype, DEVICE))
    experts = moe_cost.moe(moe.moe_experts(rows, experts_of(cfg), dtype, DEVICE))
    step = loop_step_cost.loop_step(
        loop_step.loop_step(rows, cfg.dim, cfg.lora_rank, cfg.max_loop_iters, STREAM, DEVICE)
    )
    row = cfg.dim * rows
    return {
        "embedding": Cost(weights=row * dtype.itemsize, activations=row * STREAM.itemsize),
        "prelude and coda": (attend + dense + norms) * layers,
        "loop: attention": attend * loops,
        "loop: experts": experts * loops,
        "loop: norms and step": (norms + step) * loops,
        "head": _linear(batch if last_token_only else rows, cfg.dim, cfg.vocab_size, dtype),
    }


def decode(cfg: MythosConfig, batch: int, past: int, loops: int, dtype: torch.dtype) -> dict[str, Cost]:
    """Cost by part of one decoded token per sequence after `past` cached ones."""
    return forward(cfg, batch, 1, past, loops, dtype)


def train_step(cfg: MythosConfig, batch: int, new: int, loops: int, dtype: torch.dtype) -> dict[str, Cost]:
    """Cost by part of forward and backward, without the optimiser.

    Each product is computed three times: for the output and for the gradients of both operands. Each use of a weight
    reads it twice; its gradient is accumulated over the loops and written once.
    """
    costs = forward(cfg, batch, new, 0, loops, dtype, last_token_only=False)
    once = forward(cfg, batch, new, 0, 1, dtype, last_token_only=False)
    return {
        name: Cost(2 * cost.weights + once[name].weights, 3 * cost.cache, 3 * cost.activations, 3 * cost.flops)
        for name, cost in costs.items()
    }
