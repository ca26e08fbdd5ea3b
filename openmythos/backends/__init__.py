"""What each backend supports, registered in the dispatch table.

The order of the imports is the order of preference on a device: the C++ kernels on the CPU, Triton's before the
vendors' libraries on GPUs. A row that should go first only for some calls says no to the others in `supports()`.
"""

from __future__ import annotations

from openmythos.backends import cpu, library, triton, grouped_mm, vendor  # isort: skip

__all__ = ["cpu", "grouped_mm", "library", "triton", "vendor"]
