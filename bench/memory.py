"""Peak memory of one call, beyond what was in use before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_memory(function: Callable[[], object]) -> int | None:
    """Bytes that one call needs at its peak, its result included: the allocator's on a GPU, resident pages on the CPU.

    None where the system does not tell.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        # 5 sets the high-water mark back to the present
        _CLEAR.write_text("5", encoding="ascii")
        before = _status("VmRSS")
        function()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None
