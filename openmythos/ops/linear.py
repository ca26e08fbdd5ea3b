"""Projections without bias and the dense SwiGLU, by the fastest backend wherever nothing records the call.

These two are not `openmythos::` ops: with gradients, under autocast or while compiling, torch's `linear`
is what autograd, autocast and Inductor know best.
"""

from __future__ import annotations

import torch

from openmythos import dispatch, reference
from openmythos.ops._library import accepts_backend, direct

dispatch.register_reference("linear", reference.linear)
dispatch.register_reference("swiglu", reference.swiglu)


@accepts_backend
def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight^T.

    x (..., K), weight (O, K) in one dtype -> (..., O) in that dtype.
    """
    if device := direct(x):
        return dispatch.select("linear", device, x, weight)(x, weight)
    return reference.linear(x, weight)


@accepts_backend
def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202).

    x (..., D), gate and up (I, D), down (O, I) in one dtype -> (..., O) in that dtype.
    """
    if device := direct(x):
        return dispatch.select("swiglu", device, x, gate, up, down)(x, gate, up, down)
    return reference.swiglu(x, gate, up, down)
