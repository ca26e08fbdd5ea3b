"""newop: what it computes, in one line."""

from __future__ import annotations

from typing import NamedTuple

import torch

from openmythos import dispatch
from openmythos.ops.core import accepts_backend, define, direct
from openmythos.ops.newop import reference


class NewOp(NamedTuple):
    """x (..., D)."""

    x: torch.Tensor


define(
    "newop",
    NewOp,
    "Tensor",
    fake=lambda call: torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device),
    reference=lambda call: reference.newop(*call).contiguous(),
)


def _check(call: NewOp) -> None:
    if call.x.dim() < 1:
        raise ValueError(f"x {tuple(call.x.shape)}: must be (..., D)")


@accepts_backend
def newop(x: torch.Tensor) -> torch.Tensor:
    """What it computes, as a formula (the paper).

    x (..., D) -> (..., D) in x's dtype.

    Raises:
        ValueError: when x has no dimension.
    """
    call = NewOp(x)
    _check(call)
    if device := direct(x):
        return dispatch.select("newop", device, call)(call)
    return torch.ops.openmythos.newop(*call)
