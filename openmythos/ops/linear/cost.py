"""Bytes and FLOPs of linear and swiglu."""

from __future__ import annotations

from openmythos.ops.cost import Cost
from openmythos.ops.linear import Linear, Swiglu


def linear(call: Linear) -> Cost:
    """Reads x and the weight, writes the product."""
    outputs, inputs = call.weight.shape
    rows = call.x.numel() // inputs
    written = rows * outputs * call.x.element_size()
    return Cost(weights=call.weight.nbytes, activations=call.x.nbytes + written, flops=2 * rows * inputs * outputs)


def swiglu(call: Swiglu) -> Cost:
    """Reads x and the three matrices, writes the result; the hidden units can stay on the chip."""
    rows = call.x.numel() // call.gate.shape[1]
    matrices = (call.gate, call.up, call.down)
    return Cost(
        weights=sum(matrix.nbytes for matrix in matrices),
        activations=call.x.nbytes + rows * call.down.shape[0] * call.x.element_size(),
        flops=2 * rows * sum(matrix.numel() for matrix in matrices),
    )
