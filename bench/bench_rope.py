"""Rotary embedding of the queries of mythos_1b and 10b, against a copy, upstream and the compiled reference."""

from __future__ import annotations

import pytest
import torch

from bench.baselines import upstream
from bench.baselines.compiled import compiled
from bench.case import Case
from bench.ceilings import streaming_copy
from bench.shapes import config, name, sets_beyond_cache
from openmythos import nn, ops, reference
from openmythos.ops.rope import Rope, cost


@pytest.mark.parametrize(
    ("variant", "tokens", "dtype"),
    [
        ("1b", 1, torch.bfloat16),
        ("1b", 4096, torch.float32),
        ("1b", 4096, torch.bfloat16),
        ("10b", 4096, torch.bfloat16),
    ],
    ids=name,
)
@torch.no_grad()
def bench_rope(variant, tokens, dtype, compare_interleaved, smoke, device):
    """The rope part of every head of the new tokens, read once and written once."""
    cfg = config(variant, smoke)
    tokens, heads, dim = min(tokens, 7) if smoke else tokens, cfg.n_heads, cfg.qk_rope_head_dim
    angles = nn.precompute_rope_freqs(dim, tokens).to(device)
    table = torch.view_as_real(angles)

    def one():
        return torch.randn(1, tokens, heads, dim, device=device).to(dtype), table

    inputs = [one()]
    counted = cost.rope(Rope(*inputs[0]))
    inputs += [one() for _ in range(1, sets_beyond_cache(counted.bytes))]
    theirs = upstream.rope(angles)
    spare = torch.empty_like(inputs[0][0])
    compare_interleaved(
        Case(
            ours=ops.rope,
            inputs=inputs,
            expected=reference.rope(*inputs[0]),
            cost=counted,
            baselines={
                "upstream": theirs,
                "compiled reference": compiled(reference.rope, device, smoke) if variant == "1b" else "1b only",
            },
            stream=lambda index: streaming_copy([(inputs[index][0], spare)]),
        )
    )
