"""Projections without bias and the dense SwiGLU, by the fastest backend if nothing records the call.

These two are not `openmythos::` ops: with gradients, under autocast or while compiling they call torch's `linear`,
which autograd, autocast and Inductor handle best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, direct
from openmythos.ops.linear import reference


class Linear(NamedTuple):
    """x (..., K), weight (O, K)."""

    x: torch.Tensor
    weight: torch.Tensor


class Swiglu(NamedTuple):
    """x (..., D), gate and up (I, D), down (O, I)."""

    x: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


dispatch.register_reference("linear", Linear, lambda call: reference.linear(*call))
dispatch.register_reference("swiglu", Swiglu, lambda call: reference.swiglu(*call))


@accepts_backend
def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight^T.

    x (..., K), weight (O, K) in one dtype -> (..., O) in that dtype.
    """
    if device := direct(x):
        call = Linear(x, weight)
        return dispatch.select("linear", device, call)(call)
    return reference.linear(x, weight)


@accepts_backend
def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202).

    x (..., D), gate and up (I, D), down (O, I) in one dtype -> (..., O) in that dtype.
    """
    if device := direct(x):
        call = Swiglu(x, gate, up, down)
        return dispatch.select("swiglu", device, call)(call)
    return reference.swiglu(x, gate, up, down)
