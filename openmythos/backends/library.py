"""Finds and loads the compiled parts; a missing one is a reason, never an import error."""

from __future__ import annotations

from pathlib import Path

import torch

_LIBRARY = Path(__file__).parent.parent / "_lib" / "libopenmythos_native.so"


def load_native() -> str | None:
    """Load the op library `openmythos_native`; None when it is there, else the reason why it is not."""
    if not _LIBRARY.exists():
        return "the native library is not built (pip install --no-build-isolation . needs a C++ compiler)"
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        return f"the native library does not load: {error}"
    return None


def cpu_isa() -> str | None:
    """The instruction set the CPU kernels run with ("avx2", "avx512", "avx512bf16"), None without the library."""
    return None if _missing is not None else torch.ops.openmythos_native.isa()


_missing = load_native()


def missing() -> str | None:
    """Why the native library cannot be used, or None when it can."""
    return _missing
