"""Bytes and FLOPs of latent attention in both forms, with the projections w_uk and w_uv."""

from __future__ import annotations

from openmythos.ops.cost import Cost
from openmythos.ops.mla_attention import MlaAttention


def seen_keys(new: int, total: int, *, causal: bool = True) -> int:
    """The number of pairs of query and key: query i of `new` sees total - new + i + 1 keys."""
    return new * (total - new) + new * (new + 1) // 2 if causal else new * total


def _cost(call: MlaAttention, products: int) -> Cost:
    """`products`: multiply-adds of one head of one sequence."""
    batch, _, heads, _ = call.q_nope.shape
    value = call.w_uv.shape[1]
    out = call.q_nope.numel() // call.q_nope.shape[3] * value
    cached = batch * call.total * (call.latent.shape[2] + call.k_rope.shape[2])
    return Cost(
        weights=call.w_uk.nbytes + call.w_uv.nbytes,
        cache=cached * call.latent.element_size(),
        activations=call.q_nope.nbytes + call.q_rope.nbytes + out * call.q_nope.element_size(),
        flops=2 * batch * heads * products,
    )


def mla_absorbed(call: MlaAttention) -> Cost:
    """2 H [T dc (dn + dv) + pairs (2 dc + dr)] FLOPs per sequence."""
    new, latent = call.q_nope.shape[1], call.latent.shape[2]
    pairs = seen_keys(new, call.total, causal=call.causal)
    up = latent * (call.w_uk.shape[1] + call.w_uv.shape[1])
    return _cost(call, new * up + pairs * (2 * latent + call.k_rope.shape[2]))


def mla_decompressed(call: MlaAttention) -> Cost:
    """2 H [S dc (dn + dv) + pairs (dn + dr + dv)] FLOPs per sequence."""
    new, nope, value = call.q_nope.shape[1], call.w_uk.shape[1], call.w_uv.shape[1]
    pairs = seen_keys(new, call.total, causal=call.causal)
    up = call.latent.shape[2] * (nope + value)
    return _cost(call, call.total * up + pairs * (nope + call.k_rope.shape[2] + value))
