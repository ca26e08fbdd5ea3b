"""What each backend supports, registered in the dispatch table.

The order of the imports is the order of preference on a device: the C++ kernels, then Triton's, then the vendors'
libraries. An entry that should be preferred for some calls only refuses the others in `supports()`.
"""

from __future__ import annotations

from openmythos.backends import cpp, library, triton, torch  # isort: skip

__all__ = ["cpp", "library", "torch", "triton"]
