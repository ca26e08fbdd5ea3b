"""What each backend supports, registered in the dispatch table in order of preference."""

from __future__ import annotations

from openmythos.backends import cpu, library, native

__all__ = ["cpu", "library", "native"]
