"""Upstream's model and ours side by side on the same weights, text and loops: time, error and cache size."""

from __future__ import annotations

from openmythos.demo.models import DemoError
from openmythos.demo.run import run_demo

__all__ = ["DemoError", "run_demo"]
