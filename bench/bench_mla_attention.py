"""Latent attention at mythos_1b's shapes: decode over a growing cache, prefill, against torch's own attention."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from openmythos import ops, use_backend

HEADS, LATENT, ROPE, NOPE, VALUE = 16, 256, 32, 64, 64
SCALE = (NOPE + ROPE) ** -0.5


def _inputs(new: int, total: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    rows = torch.randn(1, total, LATENT + ROPE, dtype=dtype)
    weight = torch.randn(HEADS, NOPE + VALUE, LATENT, dtype=dtype) * LATENT**-0.5
    q_nope = torch.randn(1, new, HEADS, NOPE, dtype=dtype)
    q_rope = torch.randn(1, new, HEADS, ROPE, dtype=dtype)
    return q_nope, q_rope, rows[..., :LATENT], rows[..., LATENT:], weight[:, :NOPE], weight[:, NOPE:]


def _expanded(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> torch.Tensor:
    """What upstream does: rebuild keys and values of every head, then torch's attention."""
    new, total = q_nope.shape[1], latent.shape[1]
    keys = torch.einsum("bsc,hnc->bhsn", latent, w_uk)
    keys = torch.cat((keys, k_rope[:, None].expand(-1, HEADS, -1, -1)), dim=-1)
    values = torch.einsum("bsc,hvc->bhsv", latent, w_uv)
    queries = torch.cat((q_nope, q_rope), dim=-1).transpose(1, 2)
    out = F.scaled_dot_product_attention(queries, keys, values, is_causal=new == total and new > 1, scale=SCALE)
    return out.transpose(1, 2)


@pytest.mark.parametrize(
    ("new", "total"), [(1, 512), (1, 4096), (128, 128), (1024, 1024)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def bench_mla_attention(new, total, dtype, race, check):
    """From queries and latent to heads, both projections included."""
    inputs = _inputs(new, total, dtype)
    with use_backend("reference"):
        expected = ops.mla_attention(*inputs, scale=SCALE, causal=True)
    error = check(ops.mla_attention(*inputs, scale=SCALE, causal=True), expected)
    ours = functools.partial(ops.mla_attention, *inputs, scale=SCALE, causal=True)
    race(ours, {"expanded": lambda: _expanded(*inputs)}, error=error)
