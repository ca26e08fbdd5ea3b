"""Rotary embedding of the queries of mythos_1b and 10b: useful bytes against a copy, beside upstream and torch."""

from __future__ import annotations

import pytest
import torch

from bench.ceilings import streaming_copy
from bench.peers import upstream
from bench.peers.compiled import compiled
from bench.race import Case
from bench.shapes import config, name
from bench.timing import sets_beyond_cache
from openmythos import nn, ops, reference
from openmythos.roofline import cost


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
def bench_rope(variant, tokens, dtype, race, smoke, device):
    """All heads' rope parts of the new tokens; a read and a write of each."""
    cfg = config(variant, smoke)
    tokens, heads, dim = min(tokens, 7) if smoke else tokens, cfg.n_heads, cfg.qk_rope_head_dim
    counted = cost.rope(tokens, heads, dim, dtype.itemsize)
    angles = nn.precompute_rope_freqs(dim, tokens).to(device)
    table = torch.view_as_real(angles)
    inputs = [
        (torch.randn(1, tokens, heads, dim, device=device).to(dtype), table)
        for _ in range(sets_beyond_cache(counted.bytes))
    ]
    theirs = upstream.rope(angles)
    spare = torch.empty_like(inputs[0][0])
    race(
        Case(
            ours=ops.rope,
            inputs=inputs,
            expected=reference.rope(*inputs[0]),
            cost=counted,
            peers={
                "upstream": theirs,
                "compiled reference": compiled(reference.rope, device, smoke) if variant == "1b" else "1b only",
            },
            stream=lambda index: streaming_copy([(inputs[index][0], spare)]),
        )
    )
