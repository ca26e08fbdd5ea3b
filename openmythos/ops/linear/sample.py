"""Calls of linear and swiglu by size, for reports and for cost counts on the meta device."""

from __future__ import annotations

import torch

from openmythos.ops.linear import Linear, Swiglu


def linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str) -> Linear:
    """x (rows, inputs), weight (outputs, inputs)."""
    kind = {"dtype": dtype, "device": device}
    return Linear(torch.zeros(rows, inputs, **kind), torch.zeros(outputs, inputs, **kind))


def swiglu(rows: int, dim: int, hidden: int, dtype: torch.dtype, device: str) -> Swiglu:
    """x (rows, dim), gate and up (hidden, dim), down (dim, hidden)."""
    kind = {"dtype": dtype, "device": device}
    gate, up = torch.zeros(2, hidden, dim, **kind)
    return Swiglu(torch.zeros(rows, dim, **kind), gate, up, torch.zeros(dim, hidden, **kind))
