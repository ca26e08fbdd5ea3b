"""Upstream's model, attention and loop step, unmodified, on our weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from openmythos.config import MythosConfig
from openmythos.ops.loop_step import LoopParams


def _main() -> object | str:
    try:
        from open_mythos import main
    except ImportError as error:
        return f"open_mythos does not import: {error}"
    return main


def model(cfg: MythosConfig, weights: dict[str, torch.Tensor], device: torch.device) -> nn.Module | str:
    """Upstream's OpenMythos on our weights, without a copy."""
    main = _main()
    if isinstance(main, str):
        return main
    with torch.device("meta"):
        made = main.OpenMythos(main.MythosConfig(**cfg.to_dict()))
    made.load_state_dict(weights, assign=True)
    made.head.weight = made.embed.weight
    return made.to(device).eval()


def attention(cfg: MythosConfig, weights: dict[str, torch.Tensor]) -> nn.Module | str:
    """Upstream's MLAttention on our weights."""
    main = _main()
    if isinstance(main, str):
        return main
    with torch.device("meta"):
        made = main.MLAttention(cfg)
    made.load_state_dict(weights, assign=True)
    return made.eval()


def loop_step(params: LoopParams, t: int, threshold: float, loop_dim: int) -> Callable[..., torch.Tensor] | str:
    """Upstream's modules of one step in their order: LoRA, injection, halting, bookkeeping, embedding, norm."""
    main = _main()
    if isinstance(main, str):
        return main
    rank, dim = params.lora_down.shape
    with torch.device("meta"):
        lora, act, norm = (
            main.LoRAAdapter(dim, rank, params.lora_scale.shape[0]),
            main.ACTHalting(dim),
            main.RMSNorm(dim),
        )
    named = ((lora.down, params.lora_down), (lora.scale, params.lora_scale), (norm, params.norm_w))
    for module, weight in (*named, (act.halt, params.halt_w[None])):
        module.weight = nn.Parameter(weight, requires_grad=False)
    lora.B = nn.Parameter(params.lora_b, requires_grad=False)
    act.halt.bias = nn.Parameter(params.halt_b, requires_grad=False)

    def run(h, e, block_out, h_out, cum_p) -> torch.Tensor:
        h, e, block_out = h[None], e[None], block_out[None]
        delta = block_out + lora(block_out, t)
        new = params.A * h + params.B * e + delta
        p = act(new)[0]
        still_running = cum_p < threshold
        weight = torch.where(cum_p + p >= threshold, (1 - cum_p).clamp(min=0), p) * still_running
        h_out = h_out + weight[:, None] * new[0]
        cum_p = cum_p + p * still_running
        return norm(main.loop_index_embedding(new, t + 1, loop_dim) + e)[0]

    return run


def rope(angles: torch.Tensor) -> Callable[..., torch.Tensor] | str:
    """A function of x and an ignored table that rotates x by upstream's function, or the reason why not."""
    main = _main()
    return main if isinstance(main, str) else lambda x, _: main.apply_rope(x, angles)
