"""Latent attention at the shapes of every variant: decode over a long cache, prefill, the layer with projections."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from bench.baselines import attention, packages, upstream
from bench.baselines.compiled import compiled
from bench.case import Case, truth
from bench.ceilings import best_linear, streaming_read, with_products
from bench.shapes import ALL, config, name, sets_beyond_cache
from openmythos import KVCache, nn, ops, reference, use_backend
from openmythos.nn.mask import CausalMask
from openmythos.ops.mla_attention import cost
from openmythos.ops.mla_attention.sample import Heads, mla_attention
from openmythos.roofline.model import attention as layer_cost
from openmythos.roofline.model import heads_of

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def _inputs(heads: Heads, new: int, total: int, dtype: torch.dtype, device: torch.device, sets: int) -> list[tuple]:
    """Queries and cache rows of each set; the projections are shared, as every loop reads the same ones."""
    weight = torch.randn(heads.heads, heads.nope + heads.value, heads.latent, device=device) * heads.latent**-0.5
    w_uk, w_uv = weight.to(dtype).split((heads.nope, heads.value), dim=1)

    def one() -> tuple[torch.Tensor, ...]:
        rows = torch.randn(1, total, heads.latent + heads.rope, device=device).to(dtype)
        q_nope = torch.randn(1, new, heads.heads, heads.nope, device=device).to(dtype)
        q_rope = torch.randn(1, new, heads.heads, heads.rope, device=device).to(dtype)
        return q_nope, q_rope, rows[..., : heads.latent], rows[..., heads.latent :], w_uk, w_uv

    return [one() for _ in range(sets)]


@pytest.mark.parametrize(
    ("variant", "keys", "dtype"),
    [
        *product(("1b",), (512, 4096), (torch.float32, torch.bfloat16)),
        *((variant, 4096, torch.bfloat16) for variant in ALL[1:]),
    ],
    ids=name,
)
@torch.no_grad()
def bench_decode(variant, keys, dtype, compare_interleaved, smoke, device):
    """One query over the cache, from queries and latent to heads, both projections included."""
    heads = heads_of(config(variant, smoke))
    keys = 40 if smoke else keys
    counted = cost.mla_absorbed(mla_attention(1, 1, keys, heads, dtype, "meta"))
    inputs = _inputs(heads, 1, keys, dtype, device, sets_beyond_cache(counted.cache))
    scale = heads.scale
    baselines = {
        "rebuilt, SDPA": attention.expanded(scale) if variant == "1b" else "1b only",
        "absorbed matmuls": attention.matmuls(scale),
        "FlexAttention": attention.flex(scale, device, smoke, absorbed=True) if variant == "1b" else "1b only",
        **packages.mla_decode(scale, heads, device),
    }
    case = Case(
        ours=lambda *args: ops.mla_attention(*args, scale=scale, causal=True),
        inputs=inputs,
        expected=truth(lambda *args: reference.mla_absorbed(*args, scale, True), *inputs[0]),
        cost=counted,
        baselines=with_products(baselines, dtype, device),
        stream=lambda index: streaming_read([inputs[index][2]._base]),
        tokens=1,
    )
    compare_interleaved(case)


@pytest.mark.parametrize(
    ("variant", "new", "dtype"),
    [
        *product(("1b",), (128, 1024), (torch.float32, torch.bfloat16)),
        *((variant, 512, torch.bfloat16) for variant in ("3b", "10b")),
    ],
    ids=name,
)
@torch.no_grad()
def bench_prefill(variant, new, dtype, compare_interleaved, smoke, device):
    """A causal prefill without a cache; useful FLOPs: the causal half, and the decompression."""
    heads = heads_of(config(variant, smoke))
    new = 24 if smoke else new
    inputs, scale = _inputs(heads, new, new, dtype, device, 2), heads.scale

    def plain(*args):
        return reference.mla_decompressed(*args, scale, True)[0]

    compile_it = variant == "1b" and new > 128
    baselines = {
        "rebuilt, SDPA": attention.expanded(scale),
        "compiled reference": compiled(plain, device, smoke) if compile_it else "1b, 1024 tokens only",
        "FlexAttention": attention.flex(scale, device, smoke, absorbed=False)
        if compile_it
        else "1b, 1024 tokens only",
    }
    case = Case(
        ours=lambda *args: ops.mla_attention(*args, scale=scale, causal=True),
        inputs=inputs,
        expected=truth(plain, *inputs[0]),
        cost=cost.mla_decompressed(mla_attention(1, new, new, heads, dtype, "meta")),
        baselines=with_products(baselines, dtype, device),
        products=best_linear(new, 2048, dtype, device, outs=(4096,)),
        tokens=new,
    )
    compare_interleaved(case)


@pytest.mark.parametrize("new", [1, 128])
@torch.no_grad()
def bench_layer(new, compare_interleaved, smoke, device):
    """The attention layer of mythos_1b with its projections, after 512 cached tokens or without a cache; float32."""
    cfg = config("1b", smoke)
    past = 0 if new > 1 else 7 if smoke else 512
    new = min(new, 5) if smoke else new
    layer = nn.MLAttention(cfg).to(device)
    theirs = upstream.attention(cfg, layer.state_dict())
    prefix, x = torch.randn(1, past + new, cfg.dim, device=device).split((past, new), dim=1)
    freqs = nn.precompute_rope_freqs(cfg.qk_rope_head_dim, past + new).to(device)
    mask = CausalMask(new, device, x.dtype) if new > 1 else None
    cache, kept = KVCache(cfg.max_seq_len), {}
    if past:
        layer(prefix, freqs[:past], None, cache, "layer")

    def ours(x):
        cache.truncate(past)
        return layer(x, freqs[past:], mask, cache, "layer")

    def run_theirs(x):
        copied = {key: dict(entry) for key, entry in kept.items()}
        return theirs(x, freqs[past:], mask if mask is None else mask.tensor(), copied, "layer")

    if past and not isinstance(theirs, str):
        theirs(prefix, freqs[:past], None, kept, "layer")
    with use_backend("reference"):
        expected = ours(x)
    compare_interleaved(
        Case(
            ours=ours,
            inputs=[(x,)],
            expected=expected,
            cost=layer_cost(cfg, 1, new, past + new, x.dtype),
            baselines={"upstream": theirs if isinstance(theirs, str) else run_theirs},
            tokens=new,
        )
    )
