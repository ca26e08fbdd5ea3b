"""The children of a layer as functions: a kernel where the child is unmodified, else the child called as a module.

A layer looks its pieces up once and may then run many times (the loops of the recurrent block). `trusted` says that
the caller has checked the child.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from openmythos import ops
from openmythos.nn.fusion import is_unmodified
from openmythos.nn.norm import RMSNorm

Function = Callable[[torch.Tensor], torch.Tensor]


def linear(module: nn.Module, trusted: bool = False) -> Function:
    """A projection without bias through the fastest backend; anything else in its place as it is."""
    if isinstance(module, nn.Linear) and module.bias is None and (trusted or is_unmodified(module)):
        return functools.partial(ops.linear, weight=module.weight)
    return module


def _narrow(weight: torch.Tensor, x: torch.Tensor) -> torch.dtype | None:
    """A 16-bit norm feeds 16-bit projections even where the residual stream is wider."""
    return weight.dtype if weight.dtype.itemsize < x.dtype.itemsize else None


def stream_norm(module: nn.Module, trusted: bool = False) -> Function:
    """The norm of the residual stream, in the weight's dtype where that is narrower."""
    if not (isinstance(module, RMSNorm) and (trusted or is_unmodified(module))):
        return module
    weight, eps = module.weight, module.eps
    return lambda x: ops.rms_norm(x, weight, eps, dtype=_narrow(weight, x))


def stream_norm_add(
    module: nn.Module, trusted: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(x, residual) -> (the norm of x + residual, x + residual)."""
    if not (isinstance(module, RMSNorm) and (trusted or is_unmodified(module))):

        def add(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total = x + residual
            return module(total), total

        return add
    weight, eps = module.weight, module.eps
    return lambda x, residual: ops.rms_norm_add(x, residual, weight, eps, dtype=_narrow(weight, x))


def norm(module: nn.Module, trusted: bool = False) -> Function:
    """RMSNorm in the promoted dtype of x and the weight."""
    if isinstance(module, RMSNorm) and (trusted or is_unmodified(module)):
        return functools.partial(ops.rms_norm, weight=module.weight, eps=module.eps)
    return module


def dropout(module: nn.Module, trusted: bool = False) -> Function:
    """Dropout; the identity where it drops nothing."""
    if isinstance(module, nn.Dropout) and (trusted or is_unmodified(module)) and not (module.p and module.training):
        return _identity
    return module


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def weight_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype that a module computes in, or None when it has no weight."""
    weight = getattr(module, "weight", None)
    return None if weight is None else weight.dtype


def cast(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """x in the dtype of the weight that it meets; unchanged under autocast."""
    if dtype is None or x.dtype == dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(dtype)


def to_weight_dtype(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """`cast` to the dtype of the module's weight."""
    return cast(x, weight_dtype(module))
