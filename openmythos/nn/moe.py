"""Mixture of routed and shared SwiGLU experts (DeepSeekMoE, Dai et al., arXiv 2401.06066)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from openmythos import ops, reference
from openmythos.config import MythosConfig
from openmythos.nn import pieces
from openmythos.nn.experts import Expert, ExpertList, is_plain
from openmythos.nn.fusion import fusable
from openmythos.nn.observe import Observation
from openmythos.ops import repeated
from openmythos.ops.core import autocast_dtype
from openmythos.ops.precision import wide

_PARTS = ("gate", "up", "down")


class _Pieces(NamedTuple):
    """`experts` is None if routed experts have to be called as modules; it may lack the shared ones."""

    dtype: torch.dtype | None
    router: pieces.Function
    route: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    experts: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None
    includes_shared: bool


@fusable
class MoEFFN(nn.Module):
    """Top-k of n_experts routed experts, weighted, plus n_shared_experts that serve every token.

    The routed weights are stacked: `gate_up` (E, 2, I, D) and `down` (E, D, I). `routed_experts[i]` is an
    `Expert` of live views; `state_dict()` has upstream's keys `routed_experts.{i}.{gate,up,down}.weight`,
    and loading accepts those and the stacked ones.

    `recompute` chooses what a GPU keeps for the backward pass: False keeps gate x and up x of every choice (2 k I
    elements per row and loop), True keeps only the arguments and recomputes both. `openmythos.observe` returns the
    number of rows that each expert served.
    """

    observation: Observation | None = None
    recompute: bool = False

    def __init__(self, cfg: MythosConfig) -> None:
        super().__init__()
        self.n_experts = cfg.n_experts
        self.n_shared = cfg.n_shared_experts
        self.topk = cfg.n_experts_per_tok
        self.router = nn.Linear(cfg.dim, cfg.n_experts, bias=False)
        self.register_buffer("router_bias", torch.zeros(cfg.n_experts))
        self.gate_up = nn.Parameter(torch.empty(cfg.n_experts, 2, cfg.expert_dim, cfg.dim))
        self.down = nn.Parameter(torch.empty(cfg.n_experts, cfg.dim, cfg.expert_dim))
        self._fill_like_linear_layers(cfg)
        self.shared_experts = nn.ModuleList(
            [Expert(cfg.dim, cfg.expert_dim * cfg.n_experts_per_tok) for _ in range(self.n_shared)]
        )
        self.__dict__["_experts"] = ExpertList(self)
        self.__dict__["_cast"] = None

    @torch.no_grad()
    def _fill_like_linear_layers(self, cfg: MythosConfig) -> None:
        """nn.Linear's own initial values, drawn in upstream's order, so that one seed gives the same model."""
        if self.gate_up.is_meta:
            return
        for expert in range(cfg.n_experts):
            self.gate_up[expert, 0] = nn.Linear(cfg.dim, cfg.expert_dim, bias=False).weight
            self.gate_up[expert, 1] = nn.Linear(cfg.dim, cfg.expert_dim, bias=False).weight
            self.down[expert] = nn.Linear(cfg.expert_dim, cfg.dim, bias=False).weight

    @property
    def routed_experts(self) -> ExpertList:
        """The routed experts, as views of the stacked weights."""
        return self._experts

    def expert_weight(self, expert: int, name: str) -> torch.Tensor:
        """The matrix of one expert, "gate" and "up" (I, D) or "down" (D, I), as a view of the stack."""
        return self.down[expert] if name == "down" else self.gate_up[expert, _PARTS.index(name)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., dim) -> (..., dim), rows independent of each other."""
        return self.function()(x)

    def function(self, trust: pieces.Trust = pieces.UNCHECKED) -> pieces.Function:
        """`forward` with its pieces looked up."""
        parts = self._pieces(trust)
        return lambda x: self._run(parts, x)

    def _pieces(self, trust: pieces.Trust) -> _Pieces:
        experts, shared = None, None
        if all(is_plain(expert, trust) for expert in self.shared_experts):
            shared = tuple(
                ops.SharedExpert(expert.gate.weight, expert.up.weight, expert.down.weight)
                for expert in self.shared_experts
            )
        if trust.unmodified or not self._experts.modified():
            stacks = ops.StackedExperts(*(self._cast or (self.gate_up, self.down)), shared or ())
            experts = repeated.moe_experts(stacks, trust.series, recompute=self.recompute)
        return _Pieces(
            dtype=pieces.weight_dtype(self.router),
            router=pieces.linear(self.router, trust),
            route=repeated.moe_route(self.router_bias, self.topk, trust.series),
            experts=experts,
            includes_shared=experts is not None and shared is not None,
        )

    def _run(self, parts: _Pieces, x: torch.Tensor) -> torch.Tensor:
        flat = pieces.cast(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]), parts.dtype)
        if self.topk == 0:
            return torch.zeros_like(flat).view(x.shape)
        ids, weights, counts = parts.route(parts.router(flat))
        if self.observation is not None:
            self.observation.expert_counts.append(counts)
        out = (parts.experts or self._call_experts)(flat, ids, weights)
        return (out if parts.includes_shared else self._add(out, flat)).view(x.shape)

    def _add(self, out: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """out plus the shared experts called as modules, summed in float32 or wider."""
        total = out.to(wide(out.dtype))
        for shared in self.shared_experts:
            total = total + shared(flat)
        return total.to(out.dtype)

    def _call_experts(self, flat: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The routed experts' weighted sum with every expert called as a module, for modified experts."""
        out = torch.zeros_like(flat)
        for expert, rows, column in reference.group_by_expert(ids, self.n_experts):
            y = self._experts[expert](flat[rows])
            out = out.index_add(0, rows, (weights[rows, column, None] * y).to(out.dtype))
        return out

    def hold_cast(self) -> None:
        """Under autocast, cast the stacked weights once for several calls, until `drop_cast`."""
        dtype = autocast_dtype(self.gate_up)
        if dtype is not None and self.gate_up.dtype != dtype:
            self.__dict__["_cast"] = (self.gate_up.to(dtype), self.down.to(dtype))

    def drop_cast(self) -> None:
        """Free what `hold_cast` made."""
        self.__dict__["_cast"] = None

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if type(self.gate_up.data) is not torch.Tensor:
            return
        stack = {"gate_up": destination.pop(f"{prefix}gate_up"), "down": destination.pop(f"{prefix}down")}
        for expert in range(self.n_experts):
            for part in _PARTS:
                matrix = stack["down"][expert] if part == "down" else stack["gate_up"][expert, _PARTS.index(part)]
                destination[f"{prefix}routed_experts.{expert}.{part}.weight"] = matrix

    def _load_from_state_dict(self, state_dict: dict, prefix: str, metadata: dict, *args: object) -> None:
        strict, missing, unexpected, errors = args
        first = f"{prefix}routed_experts.0.gate.weight"
        if first not in state_dict:
            super()._load_from_state_dict(state_dict, prefix, metadata, *args)
            return
        taken = {key: state_dict[key] for key in state_dict if key.startswith(f"{prefix}routed_experts.")}
        own_missing: list[str] = []
        rest = {key: value for key, value in state_dict.items() if key not in taken}
        super()._load_from_state_dict(rest, prefix, metadata, strict, own_missing, unexpected, errors)
        missing += [key for key in own_missing if key not in (f"{prefix}gate_up", f"{prefix}down")]
        self._load_experts(taken, prefix, bool(metadata.get("assign_to_params_buffers")), missing, unexpected, errors)

    @torch.no_grad()
    def _load_experts(
        self, taken: dict, prefix: str, assign: bool, missing: list[str], unexpected: list[str], errors: list[str]
    ) -> None:
        if assign:
            like = next(iter(taken.values()))
            for name in ("gate_up", "down"):
                old = getattr(self, name)
                stack = torch.empty(old.shape, dtype=like.dtype, device=like.device)
                setattr(self, name, nn.Parameter(stack, old.requires_grad))
        for expert in range(self.n_experts):
            for part in _PARTS:
                key = f"{prefix}routed_experts.{expert}.{part}.weight"
                value, target = taken.pop(key, None), self.expert_weight(expert, part)
                if value is None:
                    missing.append(key)
                elif value.shape != target.shape:
                    errors.append(f"{key}: has shape {tuple(value.shape)}, the model's is {tuple(target.shape)}")
                else:
                    target.copy_(value)
        unexpected += taken
