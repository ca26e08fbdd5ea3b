"""Fills tensors that the package gets from torch.empty with NaN, so that outputs that were never written show up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._device import _device_constructors

PACKAGE = "openmythos"


def _fill(tensor: object) -> None:
    if type(tensor) is not torch.Tensor or tensor.is_meta:
        return
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype != torch.bool:
        # Far outside every valid range of an id, count or length.
        tensor.fill_(torch.iinfo(tensor.dtype).max // 2)


def _poisoned(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def empty(*args: object, **kwargs: object) -> torch.Tensor:
        out = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller == PACKAGE or caller.startswith(f"{PACKAGE}."):
                with torch.no_grad():
                    _fill(out)
        return out

    return empty


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Inside the block, uninitialised tensors that the package creates hold NaN (integers: a huge number)."""
    # torch remembers on first use which functions `with torch.device(...)` redirects: not the replacements below.
    _device_constructors()
    owners = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in owners]
    for owner, name, original in originals:
        setattr(owner, name, _poisoned(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
