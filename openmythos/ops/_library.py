"""Declares the ops: schema, fake and one kernel per op, the chooser of the dispatch table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from openmythos import dispatch

P = ParamSpec("P")
R = TypeVar("R")

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_library = torch.library.Library("openmythos", "DEF")


def define(name: str, schema: str, fake: Callable, reference: Callable) -> None:
    """Declare `openmythos::<name>`, whose kernel on every device asks the dispatch table each time.

    Two overloads of an op, `x` and `x.rows`, share the rows of `x`.
    """
    op = name.split(".")[0]
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"openmythos::{name}", fake, lib=_library)

    def choose(*args: object) -> object:
        device = next(arg.device.type for arg in args if isinstance(arg, torch.Tensor))
        return dispatch.select(op, device, *args)(*args)

    _library.impl(name, choose, "CompositeExplicitAutograd")
    dispatch.register_reference(op, reference)


def autograd(name: str, setup_context: Callable, backward: Callable) -> None:
    """Register the backward formula of `openmythos::<name>`; it calls `openmythos::<name>_backward`."""
    torch.library.register_autograd(f"openmythos::{name}", backward, setup_context=setup_context, lib=_library)


def accepts_backend(function: Callable[P, R]) -> Callable[P, R]:
    """Give a public op the keyword `backend`, the name of the backend that has to serve this call."""

    @functools.wraps(function)
    def wrapper(*args: P.args, backend: str | None = None, **kwargs: P.kwargs) -> R:
        if backend is None:
            return function(*args, **kwargs)
        with dispatch.use_backend(backend):
            return function(*args, **kwargs)

    return wrapper


def direct(x: torch.Tensor) -> str | None:
    """The device type of x if its chosen backend may be called without going through the op, else None.

    It may where nothing records or rewrites the call: outside of autograd, compilers, autocast and subclasses.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) not in _PLAIN:
        return None
    kind = x.device.type
    return None if torch.is_autocast_enabled(kind) else kind


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype that torch.autocast asks of matrix products on x's device, or None outside autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast floating tensors as torch.autocast casts the operands of a matrix product; float64 stays."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)
