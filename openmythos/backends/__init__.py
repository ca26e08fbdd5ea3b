"""What each backend supports, registered in the dispatch table.

The order of the imports is the order of preference on a device: the C++ kernels, then Triton's, then the vendors'
libraries. A row that should go first only for some calls says no to the others in `supports()`.
"""

from __future__ import annotations

from openmythos.backends import cpp, library, triton, torch  # isort: skip

__all__ = ["cpp", "library", "torch", "triton"]
