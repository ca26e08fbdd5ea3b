"""Small models in which every path affects the result: weights far from initial values, halting at different loops."""

from __future__ import annotations

import math

import torch
from torch import nn

import openmythos

SMALL = {
    "vocab_size": 101,
    "dim": 48,
    "n_heads": 4,
    "n_kv_heads": 2,
    "max_seq_len": 40,
    "max_loop_iters": 4,
    "prelude_layers": 1,
    "coda_layers": 1,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
    "n_experts": 5,
    "n_shared_experts": 2,
    "n_experts_per_tok": 2,
    "expert_dim": 19,
    "act_threshold": 0.9,
    "lora_rank": 3,
}


def fields(attn_type: str = "mla", **changes: object) -> dict[str, object]:
    """Config fields of a small model."""
    return {**SMALL, "attn_type": attn_type, **changes}


def config(attn_type: str = "mla", **changes: object) -> openmythos.MythosConfig:
    """Our config of a small model."""
    return openmythos.MythosConfig(**fields(attn_type, **changes))


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights of unit gain, norms and biases away from 1 and 0, and positions that halt at different loops.

    The values depend on the names and shapes in the state dict only.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name in sorted(state):
        value = state[name]
        if value.is_complex() or name == "head.weight":
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("act.halt.bias"):
            noise = noise * 0.1 - 1.5
        elif "norm" in name:
            noise = 1 + 0.2 * noise
        elif name.endswith("lora.scale.weight"):
            noise = noise * 0.5
        elif value.dim() == 2:
            noise = noise / math.sqrt(value.shape[1])
        else:
            noise = noise * 0.3
        value.copy_(noise)


def small_model(attn_type: str = "mla", seed: int = 0, **changes: object) -> openmythos.OpenMythos:
    """Our small model with random weights, in evaluation mode."""
    model = openmythos.OpenMythos(config(attn_type, **changes))
    randomise(model, seed)
    return model.eval()


def tokens(batch: int, length: int, vocab_size: int = SMALL["vocab_size"], seed: int = 1) -> torch.Tensor:
    """Random token ids (B, T)."""
    return torch.randint(0, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
