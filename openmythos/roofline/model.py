"""The whole model's cost: its parts by name, each counted as often as it runs."""

from __future__ import annotations

from openmythos.config import MythosConfig
from openmythos.ops.mla_attention import absorbed_wins
from openmythos.roofline.cost import (
    FLOAT32,
    Cost,
    Experts,
    Heads,
    linear,
    loop_step,
    mla_attention,
    moe,
    rms_norm,
    swiglu,
    total,
)


def heads_of(cfg: MythosConfig) -> Heads:
    """Sizes of the config's latent attention.

    Raises:
        ValueError: for grouped-query attention, which has none.
    """
    if cfg.attn_type != "mla":
        raise ValueError(f"attn_type={cfg.attn_type!r}: the counts are those of 'mla'")
    return Heads(cfg.n_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim, cfg.qk_nope_head_dim, cfg.v_head_dim)


def experts_of(cfg: MythosConfig) -> Experts:
    """Sizes of the config's mixture of experts."""
    return Experts(cfg.dim, cfg.expert_dim, cfg.n_experts, cfg.n_experts_per_tok, cfg.n_shared_experts)


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
    return cfg.n_experts * experts_of(cfg).one


def parameters(cfg: MythosConfig) -> int:
    """All parameters; the tied embedding counts once."""
    sizes = experts_of(cfg)
    norms = 2 * cfg.dim
    dense = attention_parameters(cfg) + 3 * cfg.dim * cfg.ffn_dim + norms
    shared = sizes.shared * sizes.topk * sizes.one
    block = attention_parameters(cfg) + routed_parameters(cfg) + shared + cfg.dim * cfg.n_experts + norms
    lora = 2 * cfg.lora_rank * cfg.dim + cfg.max_loop_iters * cfg.lora_rank
    # the loop's own: log_A, B, log_dt, the halting head and its bias, the input norm
    step = 4 * cfg.dim + 2
    layers = cfg.prelude_layers + cfg.coda_layers
    return cfg.vocab_size * cfg.dim + layers * dense + block + lora + step + cfg.dim


def cache_slots(cfg: MythosConfig, loops: int) -> int:
    """Layers that keep keys and values: each loop has rows of its own."""
    return cfg.prelude_layers + loops + cfg.coda_layers


def cache_bytes(cfg: MythosConfig, loops: int, item: int) -> int:
    """Bytes of cache a token: one latent and one rope key in every slot."""
    heads = heads_of(cfg)
    return cache_slots(cfg, loops) * (heads.latent + heads.rope) * item


def attention(cfg: MythosConfig, batch: int, new: int, keys: int, item: int) -> Cost:
    """One attention layer with its projections, in the form with fewer FLOPs."""
    heads, rows = heads_of(cfg), batch * new
    absorbed = absorbed_wins(new, keys, heads.latent, heads.nope, heads.value)
    return total(
        [
            linear(rows, cfg.dim, cfg.q_lora_rank, item),
            linear(rows, cfg.q_lora_rank, heads.heads * (heads.nope + heads.rope), item),
            linear(rows, cfg.dim, heads.latent + heads.rope, item),
            mla_attention(batch, new, keys, heads, item, absorbed=absorbed),
            linear(rows, heads.heads * heads.value, cfg.dim, item),
        ]
    )


def forward(
    cfg: MythosConfig, batch: int, new: int, past: int, loops: int, item: int, *, last_token_only: bool = True
) -> dict[str, Cost]:
    """Cost by part of one call with `new` tokens a sequence after `past` cached ones, weights of `item` bytes.

    The residual stream is float32 (4 bytes) whatever the weights are.
    """
    rows, keys = batch * new, past + new
    layers = cfg.prelude_layers + cfg.coda_layers
    attend = attention(cfg, batch, new, keys, item)
    norms = rms_norm(rows, cfg.dim, FLOAT32) + rms_norm(rows, cfg.dim, FLOAT32, add=True)
    return {
        "embedding": Cost(weights=rows * cfg.dim * item, activations=rows * cfg.dim * FLOAT32),
        "prelude and coda": (attend + swiglu(rows, cfg.dim, cfg.ffn_dim, item) + norms) * layers,
        "loop: attention": attend * loops,
        "loop: experts": moe(rows, experts_of(cfg), item) * loops,
        "loop: norms and step": (norms + loop_step(rows, cfg.dim, cfg.lora_rank, FLOAT32)) * loops,
        "head": linear(batch if last_token_only else rows, cfg.dim, cfg.vocab_size, item),
    }


def decode(cfg: MythosConfig, batch: int, past: int, loops: int, item: int) -> dict[str, Cost]:
    """Cost by part of one decoded token a sequence after `past` cached ones."""
    return forward(cfg, batch, 1, past, loops, item)


def train_step(cfg: MythosConfig, batch: int, new: int, loops: int, item: int) -> dict[str, Cost]:
    """Cost by part of forward and backward, without the optimiser.

    Each product is done three times (the output, the gradients of both operands). Weights are read twice a use, and
    their gradient is written once, however many loops add to it.
    """
    costs = forward(cfg, batch, new, 0, loops, item, last_token_only=False)
    once = {name: cost.weights for name, cost in forward(cfg, batch, new, 0, 1, item, last_token_only=False).items()}
    return {
        name: Cost(2 * cost.weights + once[name], 3 * cost.cache, 3 * cost.activations, 3 * cost.flops)
        for name, cost in costs.items()
    }
