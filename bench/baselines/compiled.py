"""torch.compile of the reference."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch


def compiled(function: Callable, device: torch.device, smoke: bool) -> Callable | str:
    """`function` compiled without graph breaks, or the reason why not; uncompiled in a smoke run."""
    if smoke:
        return function
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler"
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)
