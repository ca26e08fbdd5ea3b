"""Calls a projection through the fastest backend, or as the module it has become."""

from __future__ import annotations

import torch
from torch import nn

from openmythos import ops
from openmythos.nn.pristine import pristine


def project(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """module(x) for a Linear without bias; anything else in its place is called as it is."""
    return ops.linear(x, module.weight) if pristine(module) and module.bias is None else module(x)


def to_weight_dtype(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """x in the dtype of the module's weight, which it computes in; unchanged under autocast or without a weight."""
    weight = getattr(module, "weight", None)
    if weight is None or x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)
