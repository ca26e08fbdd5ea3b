"""The mixture of experts: a decoded token against a streaming read, a prefill against F.linear."""

from __future__ import annotations

import pytest
import torch

from bench.baselines import experts, packages
from bench.case import Case
from bench.ceilings import best_linear, streaming_read, with_products
from bench.shapes import config, need, random_weights
from openmythos import ops, reference
from openmythos.config import MythosConfig
from openmythos.ops.moe import MoeExperts, cost, sample
from openmythos.roofline.model import experts_of

DTYPES = [torch.float32, torch.bfloat16]
# 3b in float32 would be 10.9 GB and show nothing new
LAYERS = [("1b", torch.float32), ("1b", torch.bfloat16), ("3b", torch.bfloat16), ("10b", torch.bfloat16)]


class Layer:
    """Router, routed and shared experts of one variant."""

    def __init__(self, cfg: MythosConfig, dtype: torch.dtype, device: torch.device) -> None:
        dim, hidden, wide = cfg.dim, cfg.expert_dim, cfg.expert_dim * cfg.n_experts_per_tok
        like = {"dtype": dtype, "device": device}
        self.cfg, self.dtype = cfg, dtype
        self.router = random_weights(cfg.n_experts, dim, scale=dim**-0.5, **like)
        self.bias = torch.zeros(cfg.n_experts, device=device)
        self.gate_up = random_weights(cfg.n_experts, 2, hidden, dim, scale=dim**-0.5, **like)
        self.down = random_weights(cfg.n_experts, dim, hidden, scale=hidden**-0.5, **like)
        self.shared = [
            ops.SharedExpert(
                random_weights(wide, dim, scale=dim**-0.5, **like),
                random_weights(wide, dim, scale=dim**-0.5, **like),
                random_weights(dim, wide, scale=wide**-0.5, **like),
            )
            for _ in range(cfg.n_shared_experts)
        ]
        self.experts = ops.StackedExperts(self.gate_up, self.down, tuple(self.shared))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.moe(x, self.router, self.bias, self.cfg.n_experts_per_tok, self.experts)

    def call(self, x: torch.Tensor) -> MoeExperts:
        """The call of moe_experts for these rows."""
        ids, weights, _ = self.route(x)
        return MoeExperts(x, ids, weights, self.experts)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, weights and counts by our ops; with different rounding, close logits may swap ranks."""
        return ops.moe_route(ops.linear(x, self.router), self.bias, self.cfg.n_experts_per_tok)

    def truth(self, x: torch.Tensor) -> torch.Tensor:
        """The reference's float32 result for our choice of experts, which are widened one at a time."""
        ids, weights, _ = self.route(x)
        wide = x.float()
        out = torch.zeros_like(wide)
        for expert, rows, column in reference.group_by_expert(ids, self.cfg.n_experts):
            one = torch.zeros(len(rows), 1, dtype=torch.int32, device=x.device)
            stacks = (stack[expert : expert + 1].float() for stack in (self.gate_up, self.down))
            out[rows] += reference.moe_experts(wide[rows], one, weights[rows, column, None], *stacks)
        for expert in self.shared:
            out += reference.swiglu(wide, *(matrix.float() for matrix in expert))
        return out.to(x.dtype)

    def chosen(self, x: torch.Tensor) -> list[int]:
        """The experts that serve the rows."""
        return sorted(set(self.route(x)[0].flatten().tolist()))

    def baselines(self) -> dict:
        """The other implementations of the layer."""
        weights = (self.cfg, self.router, self.gate_up, self.down, self.shared)
        baselines = {
            "upstream": experts.upstream(*weights),
            "upstream, sorted rows": experts.sorted_rows(*weights),
            "grouped_mm": experts.grouped_mm(*weights),
            "compiled reference": "the reference's loop over experts breaks the graph",
            **packages.moe(*weights),
        }
        return with_products(baselines, self.dtype, self.router.device)


@pytest.fixture(scope="module", params=LAYERS, ids=lambda pair: f"{pair[0]}-{str(pair[1]).removeprefix('torch.')}")
def layer(request, smoke, device):
    variant, dtype = request.param
    cfg = config(variant, smoke)
    matrices = sample.experts(experts_of(cfg), dtype, "meta").matrices()
    need(sum(matrix.nbytes for matrix in matrices), device)
    torch.manual_seed(0)
    return Layer(cfg, dtype, device)


def _tokens(layer: Layer, rows: int, sets: int, device: torch.device) -> list[tuple[torch.Tensor]]:
    return [(torch.randn(rows, layer.cfg.dim, device=device).to(layer.dtype),) for _ in range(sets)]


@torch.no_grad()
def bench_decode(layer, compare_interleaved, device):
    """One token, routed to other experts in each call; their weights are read once."""
    inputs = _tokens(layer, 1, 16, device)
    shared = [matrix for expert in layer.shared for matrix in expert]

    def stream(index: int):
        taken = layer.chosen(inputs[index][0])
        return streaming_read([*shared, *(stack[e] for e in taken for stack in (layer.gate_up, layer.down))])

    compare_interleaved(
        Case(
            ours=layer,
            inputs=inputs,
            expected=layer.truth(inputs[0][0]),
            cost=cost.moe(layer.call(inputs[0][0]), hit=layer.cfg.n_experts_per_tok),
            baselines=layer.baselines(),
            stream=stream,
            tokens=1,
        )
    )


@pytest.mark.parametrize("rows", [128, 512])
@torch.no_grad()
def bench_prefill(layer, rows, compare_interleaved, smoke, device):
    """Useful FLOPs of routing, routed and shared experts, against the best linear at the same number of rows."""
    rows = 12 if smoke else rows
    inputs = _tokens(layer, rows, 2, device)
    hit = len(layer.chosen(inputs[0][0]))
    compare_interleaved(
        Case(
            ours=layer,
            inputs=inputs,
            expected=layer.truth(inputs[0][0]),
            cost=cost.moe(layer.call(inputs[0][0]), hit=hit),
            baselines=layer.baselines(),
            products=best_linear(rows, layer.cfg.dim, layer.dtype, device),
            tokens=rows,
        )
    )
