"""Finds and loads the compiled parts; a missing one is a reason, never an import error."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch

_LIBRARY = Path(__file__).parent.parent / "_lib" / "libopenmythos_native.so"


@functools.cache
def missing() -> str | None:
    """Load the op library `openmythos_native`; None when its kernels can run here, else the reason why not."""
    if not _LIBRARY.exists():
        return "the native library is not built: a C++ compiler, then pip install --no-build-isolation ."
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        return f"the native library does not load: {error}"
    if not cpu_variants():
        return "the native kernels need a CPU with AVX2, FMA and F16C"
    return None


def cpu_variants() -> list[str]:
    """Instruction sets that have kernels and that this CPU runs, best first."""
    try:
        native = importlib.import_module("openmythos._native")
    except ImportError:
        # built for another Python: the op library serves every one, and picks its variant itself
        return ["chosen by the library"]
    return native.isa_variants()


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels run with ("avx2", "avx512", "avx512bf16"); None without kernels."""
    return None if missing() is not None else torch.ops.openmythos_native.isa()
