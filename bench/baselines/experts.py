"""Other implementations of the experts on the same stacked weights: upstream, sorted rows, grouped_mm."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from openmythos.config import MythosConfig

Shared = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def _set(linear: nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)


def upstream(
    cfg: MythosConfig, router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, shared: Shared
) -> Callable[[torch.Tensor], torch.Tensor] | str:
    """Upstream's MoEFFN, unmodified, on views of our weights."""
    try:
        from open_mythos.main import MoEFFN
    except ImportError as error:
        return f"open_mythos does not import: {error}"
    with torch.device("meta"):
        module = MoEFFN(cfg)
    module.router_bias = torch.zeros(cfg.n_experts, device=router.device)
    _set(module.router, router)
    for index, expert in enumerate(module.routed_experts):
        _set(expert.gate, gate_up[index, 0])
        _set(expert.up, gate_up[index, 1])
        _set(expert.down, down[index])
    for expert, (gate, up, back) in zip(module.shared_experts, shared, strict=True):
        _set(expert.gate, gate)
        _set(expert.up, up)
        _set(expert.down, back)
    return lambda x: module(x[None])[0]


def _route(x: torch.Tensor, router: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(x, router).float()
    values, ids = logits.topk(k, dim=-1)
    return ids, values.softmax(-1)


def _dense(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def sorted_rows(
    cfg: MythosConfig, router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, shared: Shared
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows sorted by expert once, then one dense SwiGLU for each expert that has rows."""

    def run(x: torch.Tensor) -> torch.Tensor:
        ids, weights = _route(x, router, cfg.n_experts_per_tok)
        order = ids.flatten().argsort()
        rows = order // cfg.n_experts_per_tok
        counts = ids.flatten().bincount(minlength=cfg.n_experts).tolist()
        parts = []
        for expert, part in enumerate(x[rows].split(counts)):
            if part.shape[0]:
                parts.append(_dense(part, gate_up[expert, 0], gate_up[expert, 1], down[expert]))
        weighted = torch.cat(parts) * weights.flatten()[order, None]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device).index_add_(0, rows, weighted.float())
        for expert in shared:
            out = out + _dense(x, *expert)
        return out.to(x.dtype)

    return run


def grouped_mm(
    cfg: MythosConfig, router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, shared: Shared
) -> Callable[[torch.Tensor], torch.Tensor] | str:
    """Rows sorted by expert, then torch.nn.functional.grouped_mm for gate and up together and for down."""
    if not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
    both = gate_up.flatten(1, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        ids, weights = _route(x, router, cfg.n_experts_per_tok)
        order = ids.flatten().argsort()
        rows = order // cfg.n_experts_per_tok
        ends = ids.flatten().bincount(minlength=cfg.n_experts).cumsum(0).to(torch.int32)
        hidden = F.grouped_mm(x[rows], both.transpose(1, 2), offs=ends)
        gate, up = hidden.chunk(2, dim=-1)
        y = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends) * weights.flatten()[order, None]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device).index_add_(0, rows, y.float())
        for expert in shared:
            out = out + _dense(x, *expert)
        return out.to(x.dtype)

    return run
