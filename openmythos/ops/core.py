"""What all ops share: the schema of a typed call, declaration with torch.library, and direct calls of a backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

from openmythos import dispatch

P = ParamSpec("P")
R = TypeVar("R")
Call = tuple[Any, ...]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_SCHEMA_TYPES = {
    "torch.Tensor": "Tensor",
    "torch.Tensor | None": "Tensor?",
    "torch.dtype": "ScalarType",
    "torch.dtype | None": "ScalarType?",
    "int": "int",
    "float": "float",
    "bool": "bool",
}
_library = torch.library.Library("openmythos", "DEF")


def schema_of(contract: type[Call], expand: Mapping[str, Sequence[str]], mutates: Sequence[str]) -> str:
    """The arguments of a typed call in the schema language of torch.library.

    contract: a NamedTuple, whose field order is the schema's. expand: {field: names of the tensors that it holds}.
    mutates: the fields that the op writes to.
    """
    parts = []
    for name, annotation in contract.__annotations__.items():
        if name in expand:
            parts += [f"Tensor {tensor}" for tensor in expand[name]]
            continue
        kind = _SCHEMA_TYPES[getattr(annotation, "__forward_arg__", annotation)]
        if name in mutates:
            kind = kind.replace("Tensor", f"Tensor({'abcdefgh'[mutates.index(name)]}!)")
        default = f"={contract._field_defaults[name]}" if name in contract._field_defaults else ""
        parts.append(f"{kind} {name}{default}")
    return f"({', '.join(parts)})"


def flat(call: Call) -> tuple[Any, ...]:
    """The arguments of `openmythos::<op>` for a typed call; fields that hold several tensors are flattened."""
    return call.flat() if hasattr(call, "flat") else call


def define(
    name: str,
    contract: type[Call],
    returns: str,
    *,
    fake: Callable[[Any], object],
    reference: Callable[[Any], object],
    mutates: Sequence[str] = (),
    expand: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Declare `openmythos::<name>`, whose one kernel for all devices looks up the dispatch table at each call.

    fake and reference take the typed call.
    """
    dispatch.register_reference(name, contract, reference)
    build = dispatch.builder(name)
    _library.define(
        f"{name}{schema_of(contract, expand or {}, mutates)} -> {returns}", tags=(torch.Tag.pt2_compliant_tag,)
    )
    torch.library.register_fake(f"openmythos::{name}", lambda *args: fake(build(*args)), lib=_library)

    def choose(*args: object) -> object:
        call = build(*args)
        return dispatch.select(name, call[0].device.type, call)(call)

    _library.impl(name, choose, "CompositeExplicitAutograd")


def autograd(name: str, setup_context: Callable, backward: Callable) -> None:
    """Register the backward formula of `openmythos::<name>`; it calls `openmythos::<name>_backward`."""
    torch.library.register_autograd(f"openmythos::{name}", backward, setup_context=setup_context, lib=_library)


def gradients(contract: type[Call], **found: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The gradients of a call's fields in the schema's order, None where there is none."""
    return tuple(found.pop(name, None) for name in contract._fields)


def contiguous(outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs made contiguous, as the fake implementations return them."""
    return tuple(part.contiguous() for part in outputs)


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
    """The device type of x if the backend may be called directly, without the op, else None.

    Direct calls need that nothing records or rewrites the call: no autograd, compiler, autocast or tensor subclass.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) not in _PLAIN:
        return None
    kind = x.device.type
    return None if torch.is_autocast_enabled(kind) else kind


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype of matrix products under torch.autocast on x's device, or None outside autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast floating tensors as torch.autocast casts the operands of a matrix product; float64 stays."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)
