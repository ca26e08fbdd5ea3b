"""The loop step at the width of every variant, in place and with gradients, against a copy of as many bytes."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from bench.baselines import upstream
from bench.baselines.compiled import compiled
from bench.case import Case
from bench.ceilings import streaming_copy
from bench.shapes import ALL, config, name, need, sets_beyond_cache
from openmythos import ops, reference, use_backend
from openmythos.config import MythosConfig
from openmythos.ops.loop_step import LoopParams, cost, sample

T, EPS, THRESHOLD = 3, 1e-6, 0.99
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def _params(cfg: MythosConfig, device: torch.device) -> LoopParams:
    dim, rank = cfg.dim, cfg.lora_rank
    params = LoopParams(
        torch.full((dim,), 0.37),
        torch.full((dim,), 0.1),
        torch.randn(rank, dim) * dim**-0.5,
        torch.randn(cfg.max_loop_iters, rank),
        torch.randn(rank, dim) * 0.02,
        torch.randn(dim) * dim**-0.5,
        torch.full((1,), -2.0),
        torch.ones(dim),
    )
    return LoopParams(*(part.to(device) for part in params))


def _sizes(rows: int, cfg: MythosConfig) -> tuple[int, int, int, int]:
    return rows, cfg.dim, cfg.lora_rank, cfg.max_loop_iters


def _inputs(
    rows: int, dim: int, dtype: torch.dtype, device: torch.device, sets: int
) -> list[tuple[torch.Tensor, ...]]:
    def one() -> tuple[torch.Tensor, ...]:
        state = [torch.randn(rows, dim, device=device).to(dtype) for _ in range(3)]
        return *state, torch.zeros(rows, dim, device=device), torch.zeros(rows, device=device)

    return [one() for _ in range(sets)]


@pytest.mark.parametrize(
    ("variant", "rows", "dtype"),
    [
        *product(("1b",), (1, 128, 4096), (torch.float32, torch.bfloat16)),
        *((variant, 512, torch.bfloat16) for variant in ALL[1:]),
    ],
    ids=name,
)
@torch.no_grad()
def bench_loop_step(variant, rows, dtype, compare_interleaved, smoke, device):
    """Four reads and three writes of a row, each in its own dtype; h_out is float32."""
    cfg = config(variant, smoke)
    counted = cost.loop_step(sample.loop_step(*_sizes(rows, cfg), dtype, "meta"))
    sets = sets_beyond_cache(counted.bytes)
    need(2 * sets * counted.activations, device)
    params, inputs = _params(cfg, device), _inputs(rows, cfg.dim, dtype, device, sets)
    step = {"threshold": THRESHOLD, "loop_dim": cfg.loop_dim}
    x_next = torch.empty_like(inputs[0][1])

    def ours(h, e, block_out, h_out, cum_p):
        # from zero, so that every row is still running
        cum_p.zero_()
        ops.loop_step_(h, e, block_out, h_out, cum_p, params, T, x_next=x_next, **step)
        return x_next

    def plain(h, e, block_out, h_out, cum_p):
        return reference.loop_step(h, e, block_out, h_out, cum_p, *params, T, None, THRESHOLD, EPS, cfg.loop_dim)[3]

    spare = torch.empty_like(inputs[0][3])
    case = Case(
        ours=ours,
        inputs=inputs,
        expected=plain(*inputs[0]),
        in_place=True,
        cost=counted,
        baselines={
            # upstream's modules support float32 only
            "upstream": upstream.loop_step(params, T, THRESHOLD, cfg.loop_dim)
            if dtype == torch.float32
            else "float32 only",
            "compiled reference": compiled(plain, device, smoke) if variant == "1b" else "1b only",
        },
        stream=lambda index: streaming_copy(
            [(inputs[index][1], x_next), (inputs[index][2], x_next), (inputs[index][3], spare)]
        ),
    )
    compare_interleaved(case)


@pytest.mark.parametrize("rows", [512])
@each_dtype
def bench_loop_step_training(rows, dtype, compare_interleaved, smoke, device):
    """Forward and backward for every input and parameter, against the reference under autograd."""
    cfg = config("1b", smoke)
    params = LoopParams(*(part.requires_grad_() for part in _params(cfg, device)))
    inputs = _inputs(rows, cfg.dim, dtype, device, 4)
    inputs = [tuple(part.requires_grad_() for part in one) for one in inputs]

    def train(*args):
        step = {"threshold": THRESHOLD, "loop_dim": cfg.loop_dim}
        outputs = ops.loop_step(*args, params, T, **step)
        return torch.autograd.grad(
            outputs[0].float().sum() + outputs[1].sum() + outputs[3].float().square().sum(), args[2]
        )

    def plain(*args):
        with use_backend("reference"):
            return train(*args)

    sizes = (*_sizes(rows, cfg), dtype, "meta")
    forward = cost.loop_step(sample.loop_step(*sizes))
    case = Case(
        ours=train,
        inputs=inputs,
        expected=plain(*inputs[0])[0],
        cost=forward + cost.loop_step_backward(sample.loop_step_backward(*sizes)),
        baselines={"reference": plain},
    )
    compare_interleaved(case)
