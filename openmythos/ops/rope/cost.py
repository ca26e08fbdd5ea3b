"""Bytes and FLOPs of rope."""

from __future__ import annotations

from openmythos.ops.cost import Cost
from openmythos.ops.rope import Rope


def rope(call: Rope) -> Cost:
    """One read and one write of each element, and the angles once; 4 multiplications and 2 additions for each pair."""
    return Cost(weights=call.cos_sin.nbytes, activations=2 * call.x.nbytes, flops=3 * call.x.numel())
