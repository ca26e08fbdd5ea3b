"""The children of a layer as functions: an op where the child is unmodified, else the child called as a module.

A layer looks its pieces up once and may then run many times, as in the loops of the recurrent block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from openmythos.nn.fusion import is_unmodified
from openmythos.nn.norm import RMSNorm
from openmythos.ops import repeated

Function = Callable[[torch.Tensor], torch.Tensor]


class Trust(NamedTuple):
    """What the caller of a layer has checked once for all its calls.

    unmodified: the layer and its children are. device: the result of `ops.core.direct` for the layer's input.
    """

    unmodified: bool = False
    device: str | None = None

    @property
    def series(self) -> str | None:
        """The `device` of `ops.repeated`: a modified child may return tensors of another kind than the input's."""
        return self.device if self.unmodified else None

    def allows(self, module: nn.Module) -> bool:
        """Whether an op may compute what `module` would."""
        return self.unmodified or is_unmodified(module)


UNCHECKED = Trust()


def linear(module: nn.Module, trust: Trust = UNCHECKED) -> Function:
    """A projection without bias through the fastest backend; any other module is called as it is."""
    if isinstance(module, nn.Linear) and module.bias is None and trust.allows(module):
        return repeated.linear(module.weight, trust.series)
    return module


def norm(module: nn.Module, trust: Trust = UNCHECKED) -> Function:
    """RMSNorm in the promoted dtype of x and the weight."""
    if not (isinstance(module, RMSNorm) and trust.allows(module)):
        return module
    run = repeated.rms_norm(module.weight, module.eps, trust.series)
    return lambda x: run(x, None)


def _narrow(weight: torch.Tensor, x: torch.Tensor) -> torch.dtype | None:
    """The weight's dtype if narrower than x: a 16-bit norm feeds 16-bit projections from a wider residual stream."""
    return weight.dtype if weight.dtype.itemsize < x.dtype.itemsize else None


def stream_norm(module: nn.Module, trust: Trust = UNCHECKED) -> Function:
    """The norm of the residual stream, in the weight's dtype where that is narrower."""
    if not (isinstance(module, RMSNorm) and trust.allows(module)):
        return module
    weight, run = module.weight, repeated.rms_norm(module.weight, module.eps, trust.series)
    return lambda x: run(x, _narrow(weight, x))


def stream_norm_add(
    module: nn.Module, trust: Trust = UNCHECKED
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(x, residual) -> (the norm of x + residual, x + residual)."""
    if not (isinstance(module, RMSNorm) and trust.allows(module)):

        def add(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total = x + residual
            return module(total), total

        return add
    weight, run = module.weight, repeated.rms_norm_add(module.weight, module.eps, trust.series)
    return lambda x, residual: run(x, residual, _narrow(weight, x))


def dropout(module: nn.Module, trust: Trust = UNCHECKED) -> Function:
    """Dropout; the identity if it drops nothing."""
    if isinstance(module, nn.Dropout) and trust.allows(module) and not (module.p and module.training):
        return _identity
    return module


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def weight_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype that a module computes in, or None when it has no weight."""
    weight = getattr(module, "weight", None)
    return None if weight is None else weight.dtype


def cast(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """x in the dtype of the weight that it is multiplied by; unchanged under autocast."""
    if dtype is None or x.dtype == dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(dtype)


def to_weight_dtype(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """`cast` to the dtype of the module's weight."""
    return cast(x, weight_dtype(module))
