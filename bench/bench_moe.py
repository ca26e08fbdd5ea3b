"""Mixture of experts at mythos_1b's shapes: a decoded token against a streaming read, a prefill against F.linear."""

from __future__ import annotations

import itertools

import pytest
import torch

from bench.timing import Stream, best_linear, streaming_read
from openmythos import ops, use_backend
from openmythos.memory import prefer_huge_pages

DIM, HIDDEN, EXPERTS, TOPK, SHARED = 2048, 2048, 64, 4, 2
DTYPES = [torch.float32, torch.bfloat16]


class Layer:
    """Weights of mythos_1b's routed and shared experts."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        scale = DIM**-0.5

        def weight(*shape: int) -> torch.Tensor:
            return prefer_huge_pages(torch.empty(shape, dtype=dtype)).normal_(std=scale)

        self.router = weight(EXPERTS, DIM)
        self.bias = torch.zeros(EXPERTS)
        self.gate_up = weight(EXPERTS, 2, HIDDEN, DIM)
        self.down = weight(EXPERTS, DIM, HIDDEN)
        wide = HIDDEN * TOPK
        self.shared = [
            tuple(weight(*shape) for shape in ((wide, DIM), (wide, DIM), (DIM, wide))) for _ in range(SHARED)
        ]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.moe(x, self.router, self.bias, TOPK, self.gate_up, self.down, self.shared)


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def layer(request):
    return Layer(request.param)


def _checked(layer: Layer, x: torch.Tensor, check) -> float:
    with use_backend("reference"):
        expected = layer(x)
    return check(layer(x), expected)


@torch.no_grad()
def bench_decode(layer, race, check):
    """One token: 302 MB of active weights in bfloat16, other experts each round."""
    dtype = layer.down.dtype
    tokens = [torch.randn(1, DIM, dtype=dtype) for _ in range(16)]
    error = _checked(layer, tokens[0], check)
    active = TOPK * (1 + SHARED) * 3 * DIM * HIDDEN * dtype.itemsize
    shared = [matrix for expert in layer.shared for matrix in expert]
    streams = []
    for token in tokens:
        chosen = ops.moe_route(ops.linear(token, layer.router), layer.bias, TOPK)[0][0].tolist()
        streams.append(streaming_read([*shared, *(stack[e] for e in chosen for stack in (layer.gate_up, layer.down))]))
    turn, stream_turn = itertools.cycle(tokens), itertools.cycle(streams)
    stream = Stream(lambda: next(stream_turn).call(), active)
    race(lambda: layer(next(turn)), {}, ceiling=stream, error=error, bytes=active)


@pytest.mark.parametrize("rows", [128, 512])
@torch.no_grad()
def bench_prefill(layer, rows, race, check):
    """Useful FLOPs of routing, routed and shared experts over the best linear at as many rows."""
    dtype = layer.down.dtype
    x = torch.randn(rows, DIM, dtype=dtype)
    error = _checked(layer, x, check)
    flops = 6 * rows * DIM * HIDDEN * TOPK * (1 + SHARED) + 2 * rows * DIM * EXPERTS
    race(lambda: layer(x), {}, 9, linears=best_linear(rows, DIM, dtype), error=error, flops=flops)
