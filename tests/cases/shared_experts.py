"""Routed and shared experts by the reference, with the shared matrices as flat arguments."""

from __future__ import annotations

import torch

from openmythos import reference
from openmythos.ops.precision import wide

ROUTED = 5


def triples(args: tuple) -> list[tuple]:
    """The shared experts' (gate, up, down) among the arguments of `routed_and_shared`."""
    flat = args[ROUTED:]
    return [tuple(flat[i : i + 3]) for i in range(0, len(flat), 3)]


def routed_and_shared(*args: torch.Tensor) -> torch.Tensor:
    """The routed experts' output plus each shared expert's, summed in float32 or wider."""
    out = reference.moe_experts(*args[:ROUTED])
    total = out.to(wide(out.dtype))
    for expert in triples(args):
        total = total + reference.swiglu(args[0], *expert)
    return total.to(out.dtype)
