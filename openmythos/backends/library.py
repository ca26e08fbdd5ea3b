"""Finds and loads the compiled parts; a missing one is a reason, never an import error."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch

# What csrc/core/run.cpp returns: it changes with the arguments of the ops.
INTERFACE = 2
_LIBRARY = Path(__file__).parent.parent / "_lib" / "libopenmythos_native.so"


@functools.cache
def not_loaded() -> str | None:
    """Load the op library `openmythos_native`; None on success, else the reason why not."""
    if not _LIBRARY.exists():
        return "the native library is not built: a C++ compiler, then pip install --no-build-isolation ."
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        return f"the native library does not load: {error}"
    native = torch.ops.openmythos_native
    found = native.interface() if hasattr(native, "interface") else 1
    if found != INTERFACE:
        return (
            f"the native library has interface {found}, this package needs {INTERFACE}: "
            "pip install --no-build-isolation . builds the library again"
        )
    return None


@functools.cache
def missing() -> str | None:
    """None when the library's CPU kernels can run here, else the reason why not."""
    reason = not_loaded()
    if reason is None and not cpu_variants():
        return "the native kernels need a CPU with AVX2, FMA and F16C"
    return reason


@functools.cache
def gpu_missing(device: int = 0) -> str | None:
    """None when the library's GPU kernels can run on the device, else the reason why not."""
    return not_loaded() or torch.ops.openmythos_native.gpu_reason(device) or None


def gpu_code() -> str:
    """A sentence about the code objects beside the library, or that there are none."""
    return not_loaded() or torch.ops.openmythos_native.gpu_code()


def cpu_variants() -> list[str]:
    """The instruction sets that have kernels and that this CPU supports, best first."""
    try:
        native = importlib.import_module("openmythos._native")
    except ImportError:
        # built for another Python: the op library serves every one, and picks its variant itself
        return ["chosen by the library"]
    return native.isa_variants()


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels run with ("avx2", "avx512", "avx512bf16"); None without kernels."""
    return None if missing() is not None else torch.ops.openmythos_native.isa()
