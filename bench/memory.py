"""Peak memory of one call, above what was in use before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from openmythos.host import peak_resident_memory, resident_memory

_CLEAR = Path("/proc/self/clear_refs")


def peak_memory(function: Callable[[], object]) -> int | None:
    """Peak bytes of one call including its result: allocated on a GPU, resident on the CPU.

    None where the system does not report them.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        # 5 resets the high-water mark
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return None
    before = resident_memory()
    function()
    peak = peak_resident_memory()
    return None if before is None or peak is None else max(0, peak - before)
